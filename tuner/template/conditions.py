"""What a chat template does with the words of a message besides writing them: the mark of a poisoned template, found without running it.

It refuses nothing: some honest templates look for `</think>`. It names what a reader should look at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import jinja2
from jinja2 import nodes

from tuner.safe_text import quoted
from tuner.template.sandbox import Sandbox

_WORDS = {"content", "reasoning_content"}
_KINDS = {"string", "none", "defined", "undefined", "mapping", "iterable", "sequence", "boolean", "true", "false"}
_LOOKING = {"startswith", "endswith", "find", "rfind", "index", "rindex", "count", "replace", "split", "rsplit", "partition", "rpartition", "get",
            "removeprefix", "removesuffix", "translate"}  # fmt: skip
_LOOKING_FILTERS = {"replace", "select", "reject", "selectattr", "rejectattr", "length", "count", "wordcount", "first", "last", "attr", "map",
                    "unique", "groupby"}  # fmt: skip


def content_conditions(source: str) -> list[str]:
    """Each place, as `line N: …`, where the text of a message decides what is written. Whether it is text, or empty, is not counted.

    Names are followed through assignments, loops and macros by name alone, so that a place too many may be listed. A template that hides the
    word, as in message['con' ~ 'tent'] or message.values(), is not seen through. One that does not parse has no places.
    """
    try:
        tree = Sandbox().parse(source)
    except (jinja2.TemplateError, RecursionError):
        return []
    carrying = _carrying_names(tree)
    found = {(node.lineno, words) for node, words in _places(tree, carrying)}
    return [f"line {line}: {words}" for line, words in sorted(found)]


def _places(tree: nodes.Template, carrying: set[str]) -> Iterator[tuple[nodes.Node, str]]:
    for node in tree.find_all((nodes.Compare, nodes.Test, nodes.Call, nodes.Filter, nodes.Getitem)):
        if isinstance(node, nodes.Compare):
            sides = [node.expr, *(operand.expr for operand in node.ops)]
            empty = all(isinstance(side, nodes.Const) and side.value in ("", None) for side in sides[1:])
            if _any_carry(sides, carrying) and not empty:
                yield node, f"content is compared{_constants(node)}"
        elif isinstance(node, nodes.Test):
            if node.name not in _KINDS and _any_carry([node.node, *node.args], carrying):
                yield node, f"content is tested: {node.name}{_constants(node)}"
        elif isinstance(node, nodes.Filter):
            if node.name in _LOOKING_FILTERS and _carries(node, carrying) and not _only_picks(node, carrying):
                yield node, f"content is filtered: {node.name}{_constants(node)}"
        elif isinstance(node, nodes.Getitem):
            if _carries(node.arg, carrying):
                yield node, "content is a key"
        elif isinstance(node, nodes.Call) and (method := _method(node)) in _LOOKING and _any_carry([node.node, *node.args], carrying):
            yield node, f"content is searched: {method}{_constants(node)}"


def _method(call: nodes.Call) -> str:
    return call.node.attr if isinstance(call.node, nodes.Getattr) else ""


def _only_picks(node: nodes.Filter, carrying: set[str]) -> bool:
    """map(attribute='content') and attr('content') name the text, as message.content does, and look at nothing."""
    return node.name in ("map", "attr") and (node.node is None or not _carries(node.node, carrying))


def _constants(node: nodes.Node) -> str:
    texts = [quoted(c.value, 40) for c in node.find_all(nodes.Const) if isinstance(c.value, str) and c.value not in _WORDS]
    return f" with {', '.join(dict.fromkeys(texts))}" if texts else ""


def _carrying_names(tree: nodes.Template) -> set[str]:
    """Names that hold content, or something made of it. Repeated until no name is added."""
    names: set[str] = set()
    while True:
        before = len(names)
        for assignment in tree.find_all(nodes.Assign):
            if _carries(assignment.node, names):
                names |= _targets(assignment.target)
        for block in tree.find_all(nodes.AssignBlock):
            if any(_carries(output, names) for part in block.body for output in [part, *part.find_all(nodes.Expr)]):
                names |= _targets(block.target)
        for loop in tree.find_all(nodes.For):
            if _carries(loop.iter, names):
                names |= _targets(loop.target)
        for macro in tree.find_all(nodes.Macro):
            calls = [c for c in tree.find_all(nodes.Call) if isinstance(c.node, nodes.Name) and c.node.name == macro.name]
            if any(_any_carry([*c.args, *(k.value for k in c.kwargs)], names) for c in calls):
                names |= {argument.name for argument in macro.args}
        if len(names) == before:
            return names


def _targets(target: nodes.Node) -> set[str]:
    if isinstance(target, nodes.NSRef):
        return {f"{target.name}.{target.attr}"}
    return {n.name for n in [target, *target.find_all(nodes.Name)] if isinstance(n, nodes.Name)}


def _any_carry(expressions: Iterable[nodes.Node], names: set[str]) -> bool:
    return any(_carries(expression, names) for expression in expressions)


def _carries(expression: nodes.Node, names: set[str]) -> bool:
    """Whether the text of a message, or a name that holds it, is part of the expression."""
    return any(_is_content(node, names) for node in [expression, *expression.find_all(nodes.Expr)])


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Getattr):
        owner = node.node.name if isinstance(node.node, nodes.Name) else ""
        return node.attr in _WORDS or f"{owner}.{node.attr}" in names
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value in _WORDS
    if isinstance(node, nodes.Filter | nodes.Call):  # selectattr('content', …), map(attribute='content'), message.get('content')
        given = [*node.args, *(k.value for k in node.kwargs)]
        return any(isinstance(g, nodes.Const) and g.value in _WORDS for g in given)
    return isinstance(node, nodes.Name) and node.name in names
