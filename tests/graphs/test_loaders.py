"""Files to facts: every format against an independent reading, every fault at its line."""

from __future__ import annotations

from pathlib import Path

import networkx
import pytest
import rdflib
from hypothesis import given, settings
from hypothesis import strategies as st

from graphs.errors import BadTriples, GraphInputError
from graphs.facts import LONGEST, Fact, label
from graphs.loaders import load

NAMES = st.text(
    st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp"), exclude_characters="\t"), min_size=1
)
PLAIN = NAMES.map(lambda text: " ".join(text.split())).filter(bool)
TRIPLES = st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=12)
NODES = st.sampled_from(["a", "b", "c d", "é", "<&>", '"q"'])

LAUGHS = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph><node id="&b;"/></graph></graphml>
"""
OUTSIDE = """<?xml version="1.0"?>
<!DOCTYPE graphml [<!ENTITY x SYSTEM "file:///etc/hostname">]>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="directed">
<node id="&x;"/></graph></graphml>
"""
GRAPHML = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="r" for="edge" attr.name="relation" attr.type="string"/>
<key id="l" for="node" attr.name="label" attr.type="string"/>
<graph edgedefault="DEFAULT">
<node id="m"><data key="l">Marie Curie</data></node><node id="p"/>
<edge id="x" source="m" target="p"><data key="r">discovered</data></edge>
<edge id="x" source="p" target="m"><data key="r">named by</data></edge>
</graph></graphml>
"""


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def keys(facts: list[Fact]) -> list[tuple[str, str, str]]:
    return [fact.key for fact in facts]


@given(triples=TRIPLES)
@settings(max_examples=60, deadline=None)
def test_tab_separated_lines_come_back(
    triples: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    import unicodedata

    file = tmp_path_factory.getbasetemp() / "round.tsv"
    file.write_text("\r\n\n".join("\t".join(triple) for triple in triples), encoding="utf-8")
    facts = load(file).facts
    expected = [tuple(unicodedata.normalize("NFC", name) for name in t) for t in triples]
    if tuple(map(str.lower, triples[0])) == ("head", "relation", "tail"):
        expected = expected[1:]
    assert keys(facts) == expected
    lines = file.read_text(encoding="utf-8").split("\n")
    assert all(fact.line and len(lines[fact.line - 1].split("\t")) == 3 for fact in facts), (
        "a fact points at the line it stands on"
    )


IRIS = st.sampled_from([f"http://example.org/{name}" for name in ("Ada", "born_in", "b#c", "x/y")])
OBJECTS = IRIS | st.text(st.sampled_from("abé \"\\'<>&\n0"), max_size=8).filter(str.strip)


@given(
    triples=st.lists(st.tuples(IRIS, IRIS, OBJECTS), min_size=1, max_size=8),
    form=st.sampled_from(["nt", "turtle"]),
)
@settings(max_examples=40, deadline=None)
def test_rdf_is_read_as_rdflib_reads_it(
    triples: list[tuple[str, str, str]], form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = rdflib.Graph()
    for head, relation, tail in triples:
        kind = rdflib.URIRef if tail.startswith("http") else rdflib.Literal
        graph.add((rdflib.URIRef(head), rdflib.URIRef(relation), kind(tail)))
    file = tmp_path_factory.getbasetemp() / f"some.{'nt' if form == 'nt' else 'ttl'}"
    file.write_text(graph.serialize(format=form), encoding="utf-8")
    again = rdflib.Graph().parse(file, format=form)
    expected = {(str(s), str(p), " ".join(str(o).split())) for s, p, o in again}
    assert set(keys(load(file).facts)) == expected


@given(edges=st.lists(st.tuples(NODES, NODES, PLAIN), min_size=1, max_size=8), both=st.booleans())
@settings(max_examples=40, deadline=None)
def test_graphml_is_read_as_networkx_wrote_it(
    edges: list[tuple[str, str, str]], both: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    graph = networkx.MultiDiGraph()
    for head, tail, relation in edges:
        graph.add_edge(head, tail, label=relation)
    file = tmp_path_factory.getbasetemp() / "some.graphml"
    networkx.write_graphml(graph, file, named_key_ids=both)
    import unicodedata

    expected = sorted((h, unicodedata.normalize("NFC", r), t) for h, t, r in edges)
    assert sorted(keys(load(file).facts)) == expected


@pytest.mark.parametrize("default", ["directed", "undirected"])
def test_graphml_keeps_direction_names_and_lines(tmp_path: Path, default: str) -> None:
    loaded = load(written(tmp_path, "g.graphml", GRAPHML.replace("DEFAULT", default)))
    assert [(*fact.key, fact.line) for fact in sorted(loaded.facts, key=lambda f: f.line or 0)] == [
        ("m", "discovered", "p", 7),
        ("p", "named by", "m", 8),
    ]
    assert loaded.names == {"m": ["Marie Curie"]}


def test_turtle_gives_lines_names_and_stable_blank_nodes(tmp_path: Path) -> None:
    text = (
        "@prefix : <http://example.org/> .\n"
        "@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> . "
        "@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .\n"
        ':ada rdfs:label "Ada Lovelace"@en ; a :Person ;\n'
        "   :wrote [ :about :Engine ] .\n"
        ':ada :born "1815-12-10"^^xsd:date ; :count "007"^^xsd:integer .\n'
    )
    file = written(tmp_path, "ada.ttl", text)
    loaded = load(file)
    assert loaded.names == {"http://example.org/ada": ["Ada Lovelace"]}
    found = {(label(f.head), label(f.relation), label(f.tail), f.line) for f in loaded.facts}
    assert ("ada", "is a", "Person", 3) in found
    assert ("ada", "born", "1815-12-10", 5) in found
    assert ("ada", "count", "007", 5) in found
    assert any(fact.tail == "_:ada.ttl/1" for fact in loaded.facts)
    assert load(file) == loaded


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.tsv", "a\tb\tc\na\tb\n", r"a\.tsv:2: 2 columns; write head, relation and tail"),
        ("a.tsv", "a\tb\tc\na\t \tc\n", r"a\.tsv:2: the relation is empty"),
        ("a.tsv", "a\tb\tc\td\n", r"a\.tsv:1: 4 columns"),
        ("a.tsv", b"a\tb\tc\n\xff\tb\tc\n", r"a\.tsv:2: not UTF-8 \(byte 0xff"),
        ("a.tsv", b"a\tb\tc\n\n\0", r"a\.tsv:3: binary content"),
        ("a.tsv", "a\tb\x07\tc\n", r"a\.tsv:1: the relation 'b\\x07' holds the character"),
        ("a.tsv", "a\tb\t" + "x" * (LONGEST + 1), r"a\.tsv:1: .* has 4001 characters"),
        ("a.tsv", "\n\n", r"holds no triple"),
        ("a.tsv", "head\trelation\ttail\n", r"holds no triple"),
        ("a.ttl", "@prefix : <http://x/> .\n:a :b\n:c :d :e", r"a\.ttl:\d: not Turtle"),
        ("a.ttl", ":a :b :c .", r"a\.ttl:1: not Turtle"),
        ("a.ttl", "<a> <b> " + "[ <c> " * 5000, r"a\.ttl:1: (nested too deep|not Turtle)"),
        ("a.ttl", "# nothing\n", r"holds no triple"),
        ("a.nt", "<a:a> <b:b> <c:c> .\n<a:a> <b:b>\n", r"a\.nt:2: not N-Triples"),
        ("a.nt", '<a:a> <b:b> "\\uD800" .\n', r"a\.nt:1: "),
        ("a.graphml", LAUGHS, r"a\.graphml:2: a document type declaration is not allowed"),
        ("a.graphml", OUTSIDE, r"a\.graphml:2: a document type declaration is not allowed"),
        ("a.graphml", "<graphml>\n<graph></graphml>", r"a\.graphml:2: not XML \(mismatched tag"),
        ("a.graphml", "<a>" * 40, r"nested deeper than 32"),
        ("a.graphml", "<graphml/>", r"not GraphML|holds no edge"),
        ("a.graphml", GRAPHML.replace("relation", "weight"), r":7: the edge from 'm' to 'p' does"),
        ("a.graphml", GRAPHML.replace('key="r"', 'key="z"'), r"not GraphML .*no key z"),
        ("a.csv", "a,b,c", r"the format '\.csv' is not supported"),
        ("noext", "a", r"\(no extension\)"),
    ],
)
def test_faults_name_file_line_and_remedy(
    tmp_path: Path, name: str, content: str | bytes, fault: str
) -> None:
    with pytest.raises(GraphInputError, match=fault) as caught:
        load(written(tmp_path, name, content))
    assert "hostname" not in str(caught.value) or name == "a.graphml"
    assert len(str(caught.value)) < 2_000 + len(str(tmp_path)) * 2


def test_all_faults_of_all_files_at_once(tmp_path: Path) -> None:
    written(tmp_path, "b.tsv", "a\tb\n\tb\tc\n")
    written(tmp_path, "a.nt", "what\n")
    with pytest.raises(BadTriples) as caught:
        load(tmp_path)
    assert [fault.split(": ")[0].rpartition("/")[2] for fault in caught.value.faults] == [
        "a.nt:1",
        "b.tsv:1",
        "b.tsv:2",
    ]


def test_a_file_of_another_kind_does_not_give_a_fault_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadTriples) as caught:
        load(written(tmp_path, "a.tsv", "word\n" * 10_000))
    assert len(caught.value.faults) == 100
    assert str(caught.value).endswith("and 90 more")


def test_a_folder_is_read_in_order_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = written(tmp_path, "secret.tsv", "x\ty\tz\n")
    folder = tmp_path / "graphs"
    (folder / "deep").mkdir(parents=True)
    written(folder, "b.tsv", "b\tr\tc\n")
    written(folder / "deep", "a.tsv", "a\tr\tb\n")
    written(folder, "notes.txt", "not a graph")
    (folder / "link.tsv").symlink_to(outside)
    assert [fact.head for fact in load(folder).facts] == ["b", "a"]
    (folder / "only").mkdir()
    with pytest.raises(GraphInputError, match="the folder holds no graph"):
        load(folder / "only")
    with pytest.raises(GraphInputError, match="no such file or folder"):
        load(folder / "nowhere")
