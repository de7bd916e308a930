"""JSON Schema as far as a grammar holds to it exactly; everything else is refused by name.

The compiler drops some keywords without a word (measured with xgrammar 0.2.8: uniqueItems,
dependentRequired, not, if, siblings of $ref and anyOf, a pattern beside lengths, multipleOf of
numbers, the second branch of allOf). `lower` therefore accepts only what was checked, and rewrites
it into the form that the compiler represents. Every text of the lowered schema validates against
the given one; the reverse is narrowed: objects write their declared properties, in order, only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from inference.errors import GrammarInputError
from inference.grammar.choices import apart, finite
from inference.grammar.keywords import ABOUT, BOUNDS, CHOICES, FORMATS, KNOWN, REMEDIES, TYPES
from inference.grammar.text import check_brackets, check_repetition, spell_dots
from inference.grammar.values import is_plain, is_type, unescape
from inference.suggest import nearest

Schema = dict[str, Any]
Path = tuple[str | int, ...]

MAX_STEPS = 64
"""Longest path from the root to a subschema."""
MAX_SCHEMAS = 2_000
"""Most subschemas of one schema."""
MAX_COUNT = 100_000
"""Largest value of a length or count keyword."""
MAX_INTEGER = 10**15
MAX_MULTIPLE = 1024

_CHARACTER = "[ !#-\\[\\]-\ud7ff\ue000-\U0010ffff]"
"""Characters that stand in a JSON string as they are. The compiler's own classes let through
control characters and encoded surrogates."""

_LOCAL = re.compile(r"#/(\$defs|definitions)/([^/]+)")
_PLAIN_ESCAPES = re.compile(r"\\[dws.*+?()\[\]{}|^$/-]")
_NEGATED = re.compile(r"\[\^|\\[DWS]")


class Refusal(GrammarInputError):
    """A schema that a grammar cannot hold to; `path` leads to the keyword."""

    def __init__(self, path: Path, message: str) -> None:
        place = "/".join(str(step) for step in path) or "the root"
        super().__init__(f"schema at {place}: {message}")
        self.path = path
        self.message = message


def lower(schema: Any) -> Schema:
    """The schema in the compiler's form; raises Refusal at the first thing it cannot hold to."""
    return _Lowering(schema).run()


class _Lowering:
    def __init__(self, root: Any) -> None:
        self.root = root
        self.names: dict[str, str] = {}  # reference -> its name in the lowered schema
        self.places: dict[str, Path] = {"#": ()}  # first use of each reference
        self.count = 0

    def run(self) -> Schema:
        lowered = self.read(self.root, ())
        definitions: dict[str, Schema] = {}
        while len(definitions) < len(self.names):
            for reference, name in list(self.names.items()):
                if name not in definitions:
                    _, section, key = reference.split("/")
                    target = self.root[section][unescape(key)]
                    definitions[name] = self.read(target, (section, unescape(key)))
        for reference in finite(lowered, definitions):
            given = next((r for r, name in self.names.items() if name == reference), "#")
            self.refuse(self.places[given], f"{given} needs itself forever; make it optional")
        return {**lowered, "$defs": definitions} if definitions else lowered

    def refuse(self, path: Path, message: str) -> NoReturn:
        raise Refusal(path, message)

    def read(self, schema: Any, path: Path) -> Schema:
        self.count += 1
        if self.count > MAX_SCHEMAS or len(path) > MAX_STEPS:
            self.refuse(
                path,
                f"more than {MAX_SCHEMAS} subschemas or {MAX_STEPS} steps deep; make it smaller",
            )
        if schema is True:
            return {}
        if schema is False:
            self.refuse(path, "false allows nothing; leave it out")
        if not isinstance(schema, dict):
            self.refuse(path, f"a schema is an object, true or false (found: {schema!r:.60})")
        for word in schema:
            if word not in KNOWN and not (word == "$id" and not path):
                remedy = REMEDIES.get(word) or nearest(word, KNOWN)
                self.refuse((*path, word), f"the keyword {word!r} is not supported; {remedy}")
        for word in CHOICES:
            if word in schema:
                return self.choice(word, schema, path)
        return self.typed(schema, path)

    def choice(self, word: str, schema: Schema, path: Path) -> Schema:
        beside = set(schema) - ABOUT - {word, "$id"}
        if word in ("const", "enum"):
            beside -= {"type"}
        if beside:
            also = sorted(beside)[0]
            self.refuse(
                (*path, also), f"{also!r} beside {word!r} is not supported; put it into the branch"
            )
        value, here = schema[word], (*path, word)
        if word == "$ref":
            return self.reference(value, here)
        if word in ("const", "enum"):
            return self.values(word, value, schema.get("type"), here)
        if not isinstance(value, list) or not value:
            self.refuse(here, f"{word} must be a list of schemas that is not empty")
        if word == "allOf" and len(value) > 1:
            self.refuse(here, "allOf of several schemas is not supported; merge them into one")
        branches = [self.read(branch, (*here, at)) for at, branch in enumerate(value)]
        if word == "oneOf":
            for at, branch in enumerate(value):
                for before in range(at):
                    if not apart(value[before], branch, self.resolve):
                        self.refuse(
                            (*here, at),
                            f"this branch may overlap branch {before}; use anyOf, or give "
                            "the branches a required property with different const values",
                        )
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def resolve(self, schema: Any) -> Any:
        """What a reference refers to; anything else as it stands."""
        for _ in range(8):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            reference = schema["$ref"]
            if reference == "#":
                return self.root
            _, section, key = reference.split("/")
            schema = self.root[section][unescape(key)]
        return None

    def reference(self, value: Any, path: Path) -> Schema:
        if value == "#":
            self.places["#"] = path
            return {"$ref": "#"}
        match = _LOCAL.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            self.refuse(path, f"$ref {value!r:.80} must be '#', '#/$defs/NAME' or in definitions")
        section = self.root.get(match[1])
        known = list(section) if isinstance(section, dict) else []
        if (name := unescape(match[2])) not in known:
            self.refuse(path, f"$ref {value!r} refers to nothing; {nearest(name, known)}")
        self.places.setdefault(value, path)
        return {"$ref": "#/$defs/" + self.names.setdefault(value, f"d{len(self.names)}")}

    def values(self, word: str, value: Any, types: Any, path: Path) -> Schema:
        if word == "const":
            value = [value]
        if not isinstance(value, list) or not value:
            self.refuse(path, "enum must be a list that is not empty")
        allowed = self.types(types, path) if types is not None else list(TYPES)
        for at, item in enumerate(value):
            place = path if word == "const" else (*path, at)
            if not is_plain(item):
                self.refuse(place, "a value must be JSON with finite numbers and whole characters")
            if not any(is_type(item, name) for name in allowed):
                self.refuse(place, f"{item!r:.60} is not of type {', '.join(allowed)}; correct it")
        return {"enum": value}

    def types(self, given: Any, path: Path) -> list[str]:
        names = given if isinstance(given, list) else [given]
        for name in names:
            if not isinstance(name, str) or name not in TYPES:
                hint = nearest(name, TYPES) if isinstance(name, str) else f"one of {list(TYPES)}"
                self.refuse((*path, "type"), f"unknown type {name!r:.60}; {hint}")
        if not names:
            self.refuse((*path, "type"), "type is an empty list; name one")
        return list(dict.fromkeys(names))

    def typed(self, schema: Schema, path: Path) -> Schema:
        words = set(schema) - ABOUT - {"type", "$id"}
        if "type" in schema:
            names = self.types(schema["type"], path)
        elif not words:
            return {}
        else:
            names = [name for name, own in TYPES.items() if words <= set(own)][:1]
            if not names:
                self.refuse(path, f"{', '.join(sorted(words))} belong to several types; give one")
        parts = [self.of_type(name, schema, path) for name in names]
        return parts[0] if len(parts) == 1 else {"anyOf": parts}

    def of_type(self, name: str, schema: Schema, path: Path) -> Schema:
        own = {word: schema[word] for word in TYPES[name] if word in schema}
        if name == "number" and "multipleOf" in schema:
            self.refuse((*path, "multipleOf"), "multipleOf is supported for integers only")
        for word, value in own.items():
            if word.startswith(("min", "max")) and word not in BOUNDS:
                own[word] = self.whole(value, 0, MAX_COUNT, (*path, word))
        reader = {
            "object": self.object,
            "array": self.array,
            "string": self.string,
            "integer": self.integer,
            "number": self.number,
        }.get(name)
        return {"type": name, **(reader(own, path) if reader else {})}

    def whole(self, value: Any, least: int, most: int, path: Path) -> int:
        fine = isinstance(value, int | float) and not isinstance(value, bool)
        if not fine or not math.isfinite(value) or value != int(value):
            self.refuse(path, f"{path[-1]} must be a whole number (found: {value!r:.60})")
        if not least <= value <= most:
            self.refuse(path, f"{path[-1]} must be from {least} to {most} (found: {value})")
        return int(value)

    def order(self, own: Schema, low: str, high: str, path: Path) -> None:
        if low in own and high in own and own[low] > own[high]:
            self.refuse((*path, low), f"{low} {own[low]} exceeds {high} {own[high]}")

    def object(self, own: Schema, path: Path) -> Schema:
        properties = own.get("properties", {})
        if not isinstance(properties, Mapping):
            self.refuse((*path, "properties"), "properties must be an object of schemas")
        required = own.get("required", [])
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            self.refuse((*path, "required"), "required must be a list of property names")
        for key in required:
            if key not in properties:
                self.refuse(
                    (*path, "required"), f"{key!r} is required but not declared under properties"
                )
        self.order(own, "minProperties", "maxProperties", path)
        least, most = own.get("minProperties", 0), own.get("maxProperties", math.inf)
        if most < len(set(required)):
            self.refuse((*path, "maxProperties"), f"{len(set(required))} properties are required")
        counts: Schema = {
            word: own[word] for word in ("minProperties", "maxProperties") if word in own
        }
        extra = own.get("additionalProperties", True)
        if properties:
            if not isinstance(extra, bool) and extra != {}:
                self.refuse(
                    (*path, "additionalProperties"),
                    "additionalProperties with a schema beside properties is not supported, "
                    "because keys could repeat; use one of them",
                )
            if least > len(properties):
                self.refuse((*path, "minProperties"), f"only {len(properties)} are declared")
            read = {
                key: self.read(part, (*path, "properties", key)) for key, part in properties.items()
            }
            unique = list(dict.fromkeys(required))
            return {
                "properties": read,
                "required": unique,
                "additionalProperties": False,
                **counts,
            }
        if extra is False:
            if least:
                self.refuse((*path, "minProperties"), "no property is declared; declare some")
            return {"properties": {}, "additionalProperties": False}
        if least:
            self.refuse((*path, "minProperties"), "needs declared properties: open keys may repeat")
        return {
            "additionalProperties": True
            if extra is True or extra == {}
            else self.read(extra, (*path, "additionalProperties")),
            **counts,
        }

    def array(self, own: Schema, path: Path) -> Schema:
        if own.pop("uniqueItems", False) is not False:
            self.refuse((*path, "uniqueItems"), "uniqueItems is not supported; leave it out")
        self.order(own, "minItems", "maxItems", path)
        prefix = own.get("prefixItems", [])
        if not isinstance(prefix, list):
            self.refuse((*path, "prefixItems"), "prefixItems must be a list of schemas")
        least, most = own.get("minItems", 0), own.get("maxItems", math.inf)
        if most < len(prefix):
            self.refuse((*path, "maxItems"), f"prefixItems lists {len(prefix)} items; list fewer")
        items = own.get("items", not prefix)
        if items is False and least > len(prefix):
            self.refuse((*path, "minItems"), f"only {len(prefix)} items are described; add items")
        counts: Schema = {word: own[word] for word in ("minItems", "maxItems") if word in own}
        if items is False and not prefix:
            return {"items": {}, "maxItems": 0}
        if prefix:
            read = [self.read(part, (*path, "prefixItems", at)) for at, part in enumerate(prefix)]
            counts["prefixItems"] = read
        rest = False if items is False else self.read(items, (*path, "items"))
        return {"items": rest, **counts}

    def string(self, own: Schema, path: Path) -> Schema:
        if len(own) > 1 and not set(own) <= {"minLength", "maxLength"}:
            raise Refusal(path, f"{' and '.join(own)} cannot be combined; choose one")
        self.order(own, "minLength", "maxLength", path)
        if (wanted := own.get("format")) is not None and wanted not in FORMATS:
            hint = nearest(str(wanted), FORMATS)
            self.refuse((*path, "format"), f"format {wanted!r:.40} is not supported; {hint}")
        if (pattern := own.get("pattern")) is not None:
            return {"pattern": self.pattern(pattern, (*path, "pattern"))}
        if own.keys() & {"minLength", "maxLength"}:
            counts = f"{own.get('minLength', 0)},{own.get('maxLength', '')}"
            return {"pattern": f"^{_CHARACTER}{{{counts}}}$"}
        return own

    def pattern(self, pattern: Any, path: Path) -> str:
        """The compiler copies literals into the JSON text, so none may need an escape there."""
        if not isinstance(pattern, str):
            self.refuse(path, "pattern must be a regular expression")
        if negated := _NEGATED.search(pattern.replace("\\\\", "")):
            self.refuse(path, f"a pattern cannot hold {negated[0]!r}; list what is allowed instead")
        rest = _PLAIN_ESCAPES.sub("", pattern)
        if odd := next((c for c in rest if c in '"\\' or c < " "), None):
            self.refuse(path, f"a pattern cannot hold {odd!r} or its escapes; use an enum instead")
        try:
            check_brackets("regex", pattern)
            check_repetition("regex", pattern)
            return spell_dots(pattern, _CHARACTER)
        except GrammarInputError as error:
            self.refuse(path, str(error))

    def integer(self, own: Schema, path: Path) -> Schema:
        for word in own:
            least = 1 if word == "multipleOf" else -MAX_INTEGER
            most = MAX_MULTIPLE if word == "multipleOf" else MAX_INTEGER
            own[word] = self.whole(own[word], least, most, (*path, word))
        low = max(own.get("minimum", -math.inf), own.get("exclusiveMinimum", -math.inf) + 1)
        high = min(own.get("maximum", math.inf), own.get("exclusiveMaximum", math.inf) - 1)
        step = own.get("multipleOf", 1)
        bounded = math.isfinite(low) and math.isfinite(high)
        if bounded and math.floor(high / step) < math.ceil(low / step):
            self.refuse(path, f"no {'integer' if step == 1 else f'multiple of {step}'} lies there")
        if step > 1 and len(own) > 1 and not bounded:
            self.refuse((*path, "multipleOf"), "multipleOf needs both bounds or none")
        return own

    def number(self, own: Schema, path: Path) -> Schema:
        for word, value in own.items():
            fine = isinstance(value, int | float) and not isinstance(value, bool)
            if not fine or not math.isfinite(value) or abs(value) > MAX_INTEGER:
                self.refuse((*path, word), f"{word} must be a number up to {MAX_INTEGER:.0e}")
            if round(value, 6) != value:
                self.refuse((*path, word), f"{word} {value!r} has more than 6 decimals; round it")
        low = max(own.get("minimum", -math.inf), own.get("exclusiveMinimum", -math.inf))
        high = min(own.get("maximum", math.inf), own.get("exclusiveMaximum", math.inf))
        if low > high or (low == high and len({"minimum", "maximum"} & set(own)) < len(own)):
            self.refuse(path, f"no number lies from {low} to {high}")
        return own
