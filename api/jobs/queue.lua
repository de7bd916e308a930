-- Every change of a job, each call one atomic step: KEYS[1] is the namespace, ARGV[1] the command.
-- Keys are made from the namespace here, so the server is one Redis, not a cluster.
--
--   N:job:ID               hash, the record
--   N:events:ID            stream, what happened
--   N:key:DIGEST           id of the job that an idempotency key stands for
--   N:index...             sorted sets of ids by order of submission: all, of a tenant, in a state
--   N:outbox               queued jobs that need a message, by when it is due
--   N:sent:PRIORITY        queued jobs whose message was sent, by when
--   N:passed:PRIORITY      when the message of the job that was claimed latest had been sent
--   N:leases               running jobs, by when their lease ends
--   N:done                 final jobs, by when they ended
--
-- Times are seconds by the server's clock, so no worker's clock matters.

local space = KEYS[1]
local PRIORITIES = {'high', 'normal', 'low'}
local FINAL = {completed = true, failed = true, cancelled = true}

local function key(...)
  return space .. ':' .. table.concat({...}, ':')
end

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) + tonumber(time[2]) / 1e6
end

local function stamp(seconds)
  return string.format('%.6f', seconds)
end

local function get(id, field)
  return redis.call('HGET', key('job', id), field) or ''
end

local function number(id, field)
  return tonumber(get(id, field)) or 0
end

local function set(id, ...)
  redis.call('HSET', key('job', id), ...)
end

local function record(id)
  return redis.call('HGETALL', key('job', id))
end

local function tell(id, facts)
  facts['type'] = 'job'
  redis.call('XADD', key('events', id), '*', 'e', cjson.encode(facts))
end

local function keep_for(id, seconds)
  for _, name in ipairs({key('job', id), key('events', id), get(id, 'key')}) do
    if name ~= '' then
      if seconds then redis.call('EXPIRE', name, seconds) else redis.call('PERSIST', name) end
    end
  end
end

local function unqueue(id)
  redis.call('ZREM', key('outbox'), id)
  redis.call('ZREM', key('sent', get(id, 'priority')), id)
end

-- Put a job in a state: its indexes, its event, and what goes with leaving and entering.
local function enter(id, state, facts)
  local from, tenant, place = get(id, 'state'), get(id, 'tenant'), get(id, 'place')
  if from ~= '' then
    redis.call('ZREM', key('index', 'state', from), id)
    redis.call('ZREM', key('index', 'state', from, tenant), id)
  end
  redis.call('ZADD', key('index', 'state', state), place, id)
  redis.call('ZADD', key('index', 'state', state, tenant), place, id)
  unqueue(id)
  redis.call('ZREM', key('leases'), id)
  set(id, 'state', state)
  facts = facts or {}
  facts['state'] = state
  tell(id, facts)
  if FINAL[state] then
    local ended = stamp(now())
    set(id, 'finished_at', ended)
    redis.call('ZADD', key('done'), ended, id)
  end
  if state == 'completed' or state == 'cancelled' then
    redis.call('PUBLISH', key('notices'), 'over ' .. id)
  end
end

local function enqueue(id, due, facts)
  enter(id, 'queued', facts)
  set(id, 'due', stamp(due))
  redis.call('ZADD', key('outbox'), stamp(due), id)
end

local function remove(id)
  local tenant, state = get(id, 'tenant'), get(id, 'state')
  unqueue(id)
  for _, name in ipairs({key('index'), key('index', 'tenant', tenant), key('done'),
      key('index', 'state', state), key('index', 'state', state, tenant)}) do
    redis.call('ZREM', name, id)
  end
  local idempotency = get(id, 'key')
  if idempotency ~= '' then redis.call('DEL', idempotency) end
  redis.call('DEL', key('job', id), key('events', id))
  redis.call('PUBLISH', key('notices'), 'over ' .. id)
end

local function holds(id, fence)
  return get(id, 'state') == 'running' and get(id, 'fence') == fence
end

-- True where this very call was answered before, and the answer did not arrive.
local function ended_by(id, fence)
  return get(id, 'ended') == fence
end

local run = {}

function run.submit(id, tenant, priority, manifest, attempts, idempotency, order, most)
  local name = ''
  if idempotency ~= '' then
    name = key('key', idempotency)
    local first = redis.call('GET', name)
    if first and redis.call('EXISTS', key('job', first)) == 1 then
      if get(first, 'order') ~= order then return {'conflict', first} end
      return {'same', record(first)}
    end
  end
  if redis.call('EXISTS', key('job', id)) == 1 then
    if get(id, 'order') ~= order or get(id, 'tenant') ~= tenant then return {'taken'} end
    return {'same', record(id)}
  end
  local queued = redis.call('ZCARD', key('index', 'state', 'queued'))
  if queued >= tonumber(most) then return {'full', queued} end
  local time = now()
  local place = redis.call('INCR', key('places'))
  set(id, 'id', id, 'tenant', tenant, 'priority', priority, 'manifest', manifest, 'place', place,
    'max_attempts', attempts, 'key', name, 'order', order, 'submitted_at', stamp(time),
    'attempt', 0, 'failures', 0, 'losses', 0, 'fence', 0)
  redis.call('ZADD', key('index'), place, id)
  redis.call('ZADD', key('index', 'tenant', tenant), place, id)
  if name ~= '' then redis.call('SET', name, id) end
  enqueue(id, time)
  -- The submitter sends the message; the grace is for it, and then any worker does.
  redis.call('ZADD', key('outbox'), stamp(time + 1), id)
  return {'accepted', record(id)}
end

function run.sent(...)
  local time = stamp(now())
  for _, id in ipairs({...}) do
    if get(id, 'state') == 'queued' and redis.call('ZREM', key('outbox'), id) == 1 then
      set(id, 'sent', time)
      redis.call('ZADD', key('sent', get(id, 'priority')), time, id)
    end
  end
  redis.call('PUBLISH', key('notices'), 'wake')
end

-- Jobs whose message is due, each for one caller at a time. A message counts as lost where the
-- transport holds none of this priority, or where one that was sent later has arrived.
function run.due(limit, transport, patience)
  local time = now()
  for _, priority in ipairs(PRIORITIES) do
    local horizon = (tonumber(redis.call('GET', key('passed', priority))) or 0) - 5
    if redis.call('LLEN', transport .. ':' .. priority) == 0 then
      horizon = math.max(horizon, time - tonumber(patience))
    end
    local sent = key('sent', priority)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', sent, 0, stamp(horizon), 'LIMIT', 0, limit)) do
      redis.call('ZREM', sent, id)
      redis.call('ZADD', key('outbox'), stamp(time), id)
    end
  end
  local found = {}
  for _, id in ipairs(redis.call(
      'ZRANGEBYSCORE', key('outbox'), 0, stamp(time), 'LIMIT', 0, limit)) do
    if get(id, 'state') == 'queued' then
      redis.call('ZADD', key('outbox'), stamp(time + 1), id)
      found[#found + 1] = {id, get(id, 'priority')}
    else
      redis.call('ZREM', key('outbox'), id)
    end
  end
  return found
end

function run.claim(id, worker, lease)
  local state, time = get(id, 'state'), now()
  if state == 'running' and get(id, 'worker') == worker then return record(id) end
  if state ~= 'queued' or number(id, 'due') > time then return {} end
  local sent = tonumber(get(id, 'sent'))
  if sent then redis.call('SET', key('passed', get(id, 'priority')), stamp(sent)) end
  local attempt, fence = number(id, 'attempt') + 1, number(id, 'fence') + 1
  enter(id, 'running', {attempt = attempt})
  if get(id, 'started_at') == '' then set(id, 'started_at', stamp(time)) end
  set(id, 'attempt', attempt, 'fence', fence, 'worker', worker, 'batch', 0)
  redis.call('ZADD', key('leases'), stamp(time + tonumber(lease)), id)
  return record(id)
end

-- Whether the claim holds and a cancel was asked for; with a lease it is prolonged.
function run.check(id, fence, lease)
  if not holds(id, fence) then return 'fenced' end
  if lease ~= '' then redis.call('ZADD', key('leases'), stamp(now() + tonumber(lease)), id) end
  return get(id, 'cancel') == '1' and 'cancel' or 'go on'
end

-- Events of an attempt; `batch` counts them from 1, so that one sent twice is written once.
function run.append(id, fence, batch, ...)
  if not holds(id, fence) then return 'fenced' end
  if number(id, 'batch') < tonumber(batch) then
    set(id, 'batch', batch)
    for _, event in ipairs({...}) do
      redis.call('XADD', key('events', id), '*', 'e', event)
    end
  end
  return 'ok'
end

function run.finish(id, fence, state, result, asks, problem, keep)
  if ended_by(id, fence) then return record(id) end
  if not holds(id, fence) then return 'fenced' end
  if get(id, 'cancel') == '1' and not FINAL[state] then state = 'cancelled' end
  set(id, 'ended', fence, 'result', result, 'asks', asks, 'error', problem)
  enter(id, state)
  if FINAL[state] then keep_for(id, keep) end
  return record(id)
end

function run.give_up(id, fence, problem, retry, base, ceiling, result, keep)
  if ended_by(id, fence) then return record(id) end
  if not holds(id, fence) then return 'fenced' end
  local failures = number(id, 'failures') + 1
  set(id, 'ended', fence, 'error', problem, 'failures', failures)
  if get(id, 'cancel') == '1' then
    enter(id, 'cancelled')
    keep_for(id, keep)
  elseif retry == '1' and failures < number(id, 'max_attempts') then
    local wait = math.min(tonumber(base) * 2 ^ (failures - 1), tonumber(ceiling))
    enqueue(id, now() + wait, {failures = failures, retry_in = wait})
  else
    set(id, 'result', result)
    enter(id, 'failed')
    keep_for(id, keep)
  end
  return record(id)
end

function run.release(id, fence, keep)
  if ended_by(id, fence) then return record(id) end
  if not holds(id, fence) then return 'fenced' end
  set(id, 'ended', fence)
  if get(id, 'cancel') == '1' then
    enter(id, 'cancelled')
    keep_for(id, keep)
  else
    enqueue(id, now(), {released = true})
  end
  return record(id)
end

-- Jobs whose worker let the lease run out are queued again, unless they lost too many workers.
function run.expire(limit, most, problem, keep)
  local lost = redis.call(
    'ZRANGEBYSCORE', key('leases'), 0, stamp(now()), 'LIMIT', 0, tonumber(limit))
  for _, id in ipairs(lost) do
    local losses = number(id, 'losses') + 1
    set(id, 'losses', losses)
    if get(id, 'cancel') == '1' then
      enter(id, 'cancelled')
      keep_for(id, keep)
    elseif losses < tonumber(most) then
      enqueue(id, now(), {lost = losses})
    else
      set(id, 'error', problem)
      enter(id, 'failed')
      keep_for(id, keep)
    end
  end
  return lost
end

function run.cancel(id, keep)
  local state = get(id, 'state')
  if FINAL[state] then return 'final' end
  set(id, 'cancel', '1')
  if state == 'running' then
    tell(id, {cancel_requested = true})
  else
    enter(id, 'cancelled')
    keep_for(id, keep)
  end
  return record(id)
end

function run.resume(id, from, answers, budget)
  if get(id, 'state') ~= from then return 'changed' end
  set(id, 'answers', answers, 'budget', budget, 'asks', '', 'failures', 0, 'losses', 0)
  enqueue(id, now(), {resumed = true})
  return record(id)
end

function run.retry(id)
  if get(id, 'state') ~= 'failed' then return 'changed' end
  redis.call('ZREM', key('done'), id)
  redis.call('HDEL', key('job', id), 'finished_at', 'result', 'error', 'cancel')
  set(id, 'attempt', 0, 'failures', 0, 'losses', 0)
  keep_for(id, false)
  enqueue(id, now(), {retried = true})
  return record(id)
end

function run.sweep(age, limit)
  local old = redis.call(
    'ZRANGEBYSCORE', key('done'), 0, stamp(now() - tonumber(age)), 'LIMIT', 0, tonumber(limit))
  for _, id in ipairs(old) do remove(id) end
  return old
end

local arguments = {}
for place = 2, #ARGV do arguments[place - 1] = ARGV[place] end
return run[ARGV[1]](unpack(arguments))
