"""Every fault of a workflow file: found, at its place, with its remedy, together with the others.

In the texts below the sign ¶ stands where a fault is expected; it is no part of the file.
"""

from __future__ import annotations

import pytest

from tests.workflows.basis import BASE, TABLES, VALID, faults_of
from workflows.errors import Fault


def faults(text: str) -> list[Fault]:
    return faults_of(text, TABLES)


def change(old: str, new: str) -> str:
    assert BASE.count(old) == 1, old
    return BASE.replace(old, new)


def test_the_base_has_no_fault() -> None:
    assert faults(BASE) == []


CASES = {
    # shape
    "unknown_key": [
        ("name: base", "name: base\n¶nodez: {}", "did you mean 'nodes'?"),
        ("{from: find, to: ask}", "{from: find, to: ask, ¶whn: 'true'}", "did you mean 'when'?"),
        ("temperature: 0.5", "¶temperatur: 0.5", "did you mean 'temperature'?"),
        ("default: 3", "¶defalt: 3", "did you mean 'default'?"),
    ],
    "missing_key": [
        ("name: base\n", "", "'name'"),
        ("¶find: {use: search, with:".replace("¶", ""), "¶find: {with:", "'use'"),
    ],
    "wrong_type": [
        ("maximum: 9", "maximum: ¶nine", "must be a number (found: string 'nine')"),
        ("temperature: 0.5", "temperature: ¶hot", "must be a number or ${...}"),
        ("tokens: 100", "tokens: ¶[1]", "must be an integer or a string (found: list of 1)"),
        ("tokens: 100", "tokens: ¶many", "must be a number or ${inputs...}"),
        ("tokens: 100", "tokens: ¶1.5", "must be an integer"),
        ("{from: start, to: find}", "{from: start, to: ¶7}", "a string or a list"),
        ("state: {round: 0}", "state: ¶[round]", "must be a mapping"),
    ],
    "bad_name": [
        ("name: base", "name: ¶my flow", "letters, digits and _"),
        ("count: {use", "¶co-unt: {use", "letters, digits and _"),
        ("state: {round: 0}", "state: {round: 0, ¶_x: 1}", "must start with a letter"),
    ],
    "bad_value": [
        ("temperature: 0.5", "temperature: ¶-1", "must be finite and >= 0"),
        ("tokens: 100", "tokens: ¶0", "must be positive"),
        ("type: integer", "type: ¶int", "'string', 'integer', 'number'"),
        ("budget:", "limits: {steps: ¶0}\nbudget:", "at least 1"),
    ],
    # inputs
    "bad_default": [
        ("default: 3", "default: ¶'3'", "must be an integer (found: string '3')"),
        ("default: 3", "default: ¶10", "at most 9"),
        ("default: 3", "default: ¶true", "must be an integer"),
        ("type: string", "type: string, choices: [a], default: ¶b", 'one of ["a"]'),
    ],
    "bad_choice": [
        ("type: string", "type: string, choices: ¶[]", "must not be empty"),
        ("type: string", "type: string, choices: [a, ¶1]", "must be a string"),
    ],
    "bad_bound": [
        ("type: string", "type: string, ¶minimum: 1", "for integer and number"),
        ("minimum: 1", "minimum: ¶10", "exceeds maximum 9"),
    ],
    # resources
    "unknown_resource": [("use: small", "use: ¶smal", "did you mean 'small'?")],
    "missing_capability": [
        ("{use: ask,", "{use: ¶steer,", "'logits', which the engine 'engine' lacks"),
    ],
    "missing_engine": [
        ("  engine: {use: small}\n", "", "add `engine: {use: small}` under resources"),
        ("{use: ask,", "{use: ask, engine: ¶engin,", "did you mean 'engine'?"),
    ],
    "missing_retriever": [("  retriever: {use: words, k: 5}\n", "", "add `retriever:")],
    "not_a_engine": [("{use: ask,", "{use: ask, engine: ¶retriever,", "'retriever' is 'words'")],
    "not_a_retriever": [("{use: search,", "{use: search, retriever: ¶engine,", "is 'small'")],
    "not_generating": [
        ("{use: search,", "{use: search, ¶sampling: {seed: 1},", "generates nothing"),
        ("{use: search,", "{use: search, ¶engine: engine,", "generates nothing"),
    ],
    "not_retrieving": [("{use: ask,", "{use: ask, ¶retriever: retriever,", "retrieves nothing")],
    # nodes and their options
    "unknown_node_kind": [("{use: search,", "{use: ¶serch,", "did you mean 'search'?")],
    "unknown_option": [
        ('k: "${inputs.k}"', '¶kk: "${inputs.k}"', "did you mean 'k'?"),
        ('k: "${inputs.k}"', "¶kk: 3", "did you mean 'k'?"),
        ("use: small", "use: small, ¶thread: 1", "did you mean 'threads'?"),
    ],
    "bad_option": [
        ('k: "${inputs.k}"', "k: ¶0", "at least 1 (found: number 0)"),
        ('k: "${inputs.k}"', "k: ¶'3'", "must be an integer (found: string '3')"),
        ('k: "${inputs.k}"', "exclude: [a, ¶1]", "must be a string"),
        ('prompt: "${state.hits}"', "prompt: ¶''", "must not be empty"),
        ("use: small", "use: small, threads: ¶0", "at least 1"),
    ],
    "missing_option": [
        (', ¶with: {prompt: "${state.hits}"}'.replace("¶", ""), "", "'prompt'"),
        ('with: {prompt: "${state.hits}"}', "¶with: {}", "'prompt'"),
    ],
    "expression_not_allowed": [
        ("use: small", 'use: small, model: ¶"${inputs.question}"', "opened before the run"),
        ("round: 0", 'round: ¶"${inputs.k}"', "use a `set` node"),
    ],
    "reserved_name": [
        ("count: {use", "¶end: {use", "rename it"),
        ("{use: ask,", '{use: ask, over: "${state.hits}", into: text, item: ¶state,', "rename"),
        ("{use: ask,", '{use: ask, over: "${state.hits}", into: text, item: ¶len,', "rename"),
    ],
    "unknown_save": [
        ("{use: ask,", "{use: ask, save: {¶txt: text},", "did you mean 'text'?"),
    ],
    "save_clash": [("{use: ask,", "{use: ask, ¶save: {reason: text},", "both be saved as 'text'")],
    "map_without_into": [("{use: ask,", '{use: ask, ¶over: "${state.hits}",', "add `into:")],
    "map_without_over": [("{use: ask,", "{use: ask, ¶into: text,", "add `over:")],
    # edges
    "unknown_node": [
        ("to: ask}", "to: ¶aks}", "did you mean 'ask'?"),
        ("{from: count,", "{from: ¶cont,", "did you mean 'count'?"),
        ("to: ask}", "to: [ask, ¶cont]}", "did you mean 'count'?"),
    ],
    "bad_endpoint": [
        ("{from: count, to: find}", "{from: count, to: ¶start}", "no edge enters 'start'"),
        ("{from: count, to: find}", "{from: ¶end, to: find}", "no edge leaves 'end'"),
        ("{from: count, to: find}", "{from: ¶[start, count], to: find}", "a join waits"),
    ],
    "join_condition": [
        ("{from: find, to: ask}", "{from: [find], ¶when: 'true', to: ask}", "no condition"),
    ],
    "empty_edge": [("{from: find, to: ask}", "{from: find, to: ¶[]}", "at least one")],
    "duplicate_node": [("{from: find, to: ask}", "{from: find, to: [ask, ¶ask]}", "twice")],
    "no_start": [("  - {from: start, to: find}\n", "", "{from: start, to: find}")],
    "shadowed_edge": [
        ("to: count}", "to: count}\n  - {from: ask, to: end}", "is never taken"),
        (
            "to: find}\n  - {from: find",
            "to: find}\n  - ¶{from: start, to: ask}\n  - {from: find",
            "use one edge `to: [a, b]`",
        ),
    ],
    "unreachable_node": [
        ("nodes:\n", "nodes:\n  ¶lost: {use: set, with: {values: {a: 1}}}\n", "never reached"),
    ],
    "no_way_to_end": [
        ("- {from: ask, to: end}", "- {from: ask, when: 'state.round > 3', to: find}", "no path"),
    ],
    "endless_loop": [
        (
            '{from: ask, when: "state.round < inputs.k", to: count}\n  - {from: ask, to: end}',
            "{from: ask, to: [count, end]}",
            "find -> ask -> count -> find",
        ),
    ],
    "parallel_write": [
        ("{from: start, to: find}", "{from: start, to: ¶[find, twin]}", "both write state.hits"),
    ],
    # expressions
    "expression": [
        ("state.round < inputs.k", "state.round <¶", "ends too early"),
        ("state.round < inputs.k", "state.round < ¶lambda", "not an expression"),
        ("state.round < inputs.k", "1 < ¶[x for x in state.hits]", "comprehension"),
        ("state.round < inputs.k", "${state.round < inputs.k}", "without ${"),
        ("${state.text}", "a ¶${state.text", "closing"),
        ("${state.text}", "a ${¶state.text.lower()}", "lower(text)"),
    ],
    "unknown_name": [
        ("state.round < inputs.k", "state.round < ¶input.k", "did you mean 'inputs'?"),
        ("${inputs.question}", "${¶item}", "known: inputs, state"),
        ('seconds: "${inputs.k}"', 'seconds: "${¶state.round}"', "use inputs"),
    ],
    "unknown_input": [
        ("state.round < inputs.k", "state.round < ¶inputs.kk", "did you mean 'k'?"),
        ("${inputs.question}", "Q: ${¶inputs.questoin}", "did you mean 'question'?"),
    ],
    "unknown_state_key": [
        ("${state.text}", "${¶state.txt}", "did you mean 'text'?"),
        ("{use: ask,", "{use: ask, save: {text: said},", "known: hits"),
    ],
    "unread_state_key": [
        ("{use: search,", "{use: search, save: {hits: found},", "reads state.hits"),
    ],
    "constant_outputs": [('¶{answer: "${state.text}"}'.replace("¶", ""), "{answer: x}", "no out")],
}


@pytest.mark.parametrize(
    ("code", "old", "new", "remedy"),
    [(code, *case) for code, cases in CASES.items() for case in cases],
)
def test_a_fault_is_found_at_its_place_with_its_remedy(
    code: str, old: str, new: str, remedy: str
) -> None:
    text = change(old, new)
    if code == "parallel_write":
        twin = "  twin: {use: search, with: {query: a}}\n  find:"
        text = text.replace("  find:", twin, 1)
        text = text.replace("edges:\n", "edges:\n  - {from: twin, to: end}\n")
    mark = text.find("¶")
    clean = text.replace("¶", "")
    found = [fault for fault in faults(clean) if fault.code == code]
    assert found, [str(fault) for fault in faults(clean)]
    assert any(remedy in fault.message for fault in found), [fault.message for fault in found]
    if mark >= 0:
        place = (text.count("\n", 0, mark) + 1, mark - text.rfind("\n", 0, mark))
        assert place in [(fault.line, fault.column) for fault in found]


def test_all_faults_are_reported_together_in_order() -> None:
    text = BASE
    for old, new in (
        ("use: small", "use: smal"),
        ("{use: search,", "{use: serch,"),
        ("temperature: 0.5", "temperature: -1"),
        ("to: ask}", "to: aks}"),
        ("${inputs.question}", "${inputs.questoin}"),
        ("tokens: 100", "token: 100"),
    ):
        text = text.replace(old, new)
    found = faults(text)
    assert [fault.code for fault in found] == [
        "unknown_resource",
        "unknown_node_kind",
        "unknown_input",
        "bad_value",
        "unknown_node",
        "unknown_key",
    ]
    assert found == sorted(found)


def test_one_bad_key_of_a_node_does_not_hide_its_other_faults() -> None:
    text = change("{use: search,", "{use: search, timeout: soon, bogus: 1, save: {hit: x},")
    codes = {fault.code for fault in faults(text)}
    assert codes == {"wrong_type", "unknown_key", "unknown_save"}


def test_an_unreadable_node_does_not_make_false_faults_elsewhere() -> None:
    codes = [fault.code for fault in faults(change("{use: search,", "{use: serch,"))]
    assert codes == ["unknown_node_kind"]


@pytest.mark.parametrize("root", ["[1]", "text", "3"])
def test_a_file_that_is_no_mapping(root: str) -> None:
    assert [fault.code for fault in faults(root)] == ["wrong_type"]


@pytest.mark.parametrize("edges", VALID.values(), ids=VALID.keys())
def test_graphs_that_are_fine(edges: str) -> None:
    begin, end = BASE.index("edges:"), BASE.index("outputs:")
    assert faults(BASE[:begin] + edges.lstrip() + BASE[end:]) == []


def test_a_map_item_is_known_inside_its_node_only() -> None:
    mapped = '{use: ask, over: "${state.hits}", item: hit, into: texts, with: {prompt: "${hit.id}"}'
    text = change('{use: ask, with: {prompt: "${state.hits}"}', mapped)
    fine = text.replace("${state.text}", "${state.texts}")
    assert faults(fine) == []
    outside = fine.replace("${state.texts}", "${hit}")
    assert [fault.code for fault in faults(outside)] == ["unknown_name"]
    assert [fault.code for fault in faults(text)] == ["unknown_state_key"]


def test_over_must_be_one_whole_expression() -> None:
    for over in ("state.hits", "a ${state.hits}", "${state.hits}${state.hits}"):
        text = change("{use: ask,", f'{{use: ask, over: "{over}", into: text,')
        assert "bad_value" in [fault.code for fault in faults(text)]


def test_escaped_openings_are_texts_not_expressions() -> None:
    assert faults(change('prompt: "${state.hits}"', 'prompt: "$${nothing}"')) == []
