"""Where chat templates run: jinja2's sandbox as transformers sets it up, with an end to every loop, and a trial in a process of its own.

It refuses templates that take more than 1 s of processor time or 512 MB of memory. Run as a file it is the trial, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

STEPS = 1_000_000  # turns of loops and calls in one rendering; a chat of 1,000 turns takes a few thousand
CPU_SECONDS = 1  # of one rendering, and of a whole trial
MEMORY_BYTES = 512 * 2**20
SIZE = 16 * 2**20  # characters of a value or of a rendering
_WALL_SECONDS = 60  # a trial that waits for a busy machine is not at fault: processor time decides
_POWER = 64
_BETWEEN = 1024  # steps between two looks at the clock


class Exhausted(jinja2.TemplateError):
    """A rendering that would not end, or would not fit."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers@5.23.0 utils/chat_template_utils.py, `_cached_compile_jinja_template`, with bounds.

    Loops, calls, products and assigned values are counted and measured; a filter such as `center` is not, which is what the trial is for.
    """

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self._spent = threading.local()
        self.filters["tojson"] = _tojson
        self.filters[_COUNTED] = self._counted
        self.filters[_MEASURED] = _measured
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def compiled(self, source: str) -> jinja2.Template:
        """The template, every loop counted and every assigned value measured. Raises jinja2.TemplateError."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = self._filtered(loop.iter, _COUNTED)
        for assignment in list(tree.find_all(nodes.Assign)):
            assignment.node = self._filtered(assignment.node, _MEASURED)
        for block in list(tree.find_all(nodes.AssignBlock)):
            block.filter = self._filtered(block.filter, _MEASURED)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None), None)

    def rendered(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        """The text. Raises jinja2.TemplateError, and whatever else the template's own arithmetic and lookups raise."""
        self._spent.steps, self._spent.until = 0, time.thread_time() + CPU_SECONDS
        return str(_measured("".join(_bounded(template.generate(variables)))))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._step()
        for value in (*args, *kwargs.values()):
            _measured(value)
            if isinstance(value, int) and abs(value) > SIZE:
                raise Exhausted(f"a call with the number {value:.3g}")
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            if not all(isinstance(n, int | float) and abs(n) <= _POWER for n in (left, right)):
                raise Exhausted(f"a power of more than {_POWER}")
        else:
            _refuse_long_product(left, right)
            _refuse_long_product(right, left)
        return super().call_binop(context, operator, left, right)

    def _filtered(self, expression: nodes.Node | None, name: str) -> nodes.Filter:
        found = nodes.Filter(cast("nodes.Expr | None", expression), name, [], [], None, None, lineno=expression.lineno if expression else 1)
        found.set_environment(self)
        return found

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _step(self) -> None:
        spent = self._spent
        spent.steps = getattr(spent, "steps", 0) + 1
        if spent.steps % _BETWEEN == 0 and (spent.steps > STEPS or time.thread_time() > spent.until):
            raise Exhausted(f"more than {spent.steps - 1:,} turns of its loops")


_COUNTED, _MEASURED = "_counted", "_measured"


class _Generation(Extension):
    """{% generation %} … {% endgeneration %}: marks that some templates put round assistant text. The text inside is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _refuse_long_product(value: Any, times: Any) -> None:
    if isinstance(value, Sized) and isinstance(times, int) and len(value) * times > SIZE:
        raise Exhausted(f"a product of more than {SIZE:,} characters")


def _measured(value: Any) -> Any:
    if isinstance(value, Sized) and len(value) > SIZE:
        raise Exhausted(f"a value of more than {SIZE:,} characters")
    return value


def _bounded(parts: Iterable[str]) -> Iterator[str]:
    size = 0
    for part in parts:
        size += len(part)
        if size > SIZE:
            raise Exhausted(f"more than {SIZE:,} characters of text")
        yield part


# What a template can raise besides jinja2.TemplateError: its own arithmetic, lookups, nesting and sizes.
FAULTS = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError, SyntaxError)


# --- the trial: a process of its own, with limits of the operating system -------------------------------------------


@lru_cache(maxsize=64)
def trial_render(source: str, variables: str = "{}") -> str | None:
    """Why this template must not be rendered, or None. `variables` is JSON: special tokens and the recipe's own.

    Compiled and rendered once over several chats in a process that may take CPU_SECONDS and MEMORY_BYTES. A template that only raises
    passes: it may refuse the turns it is tried with, and cannot harm. Costs 0.1 s for each new template of a process.
    """
    command = [sys.executable, "-P", str(Path(__file__))]
    question = json.dumps({"source": source, "variables": json.loads(variables)})
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, encoding="utf-8", timeout=_WALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no end within {_WALL_SECONDS} s"
    if done.returncode == 0:
        return done.stdout or None
    return f"more than {CPU_SECONDS} s of processor time or {MEMORY_BYTES // 2**20} MB of memory"


def _chats() -> Iterator[list[dict[str, Any]]]:
    call: dict[str, Any] = {"id": "call00001", "type": "function", "function": {"name": "find", "arguments": {"key": "value"}}}
    asked: dict[str, Any] = {"role": "user", "content": "A question, of some length?\n" * 3}
    told: dict[str, Any] = {"role": "assistant", "content": "An answer."}
    system: dict[str, Any] = {"role": "system", "content": "Be brief."}
    calls: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    result: dict[str, Any] = {"role": "tool", "content": '{"found": 1}', "tool_call_id": "call00001", "name": "find"}
    yield from ([asked], [asked, told], [system, asked, told], [system, *[asked, told] * 8], [asked, calls, result, told])


def _limit_resources() -> None:
    try:
        import resource
    except ImportError:  # not on Windows: there the clock of the caller is the only limit
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # ends the process, even inside C; counted from here, without the imports
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS + 2, CPU_SECONDS + 2))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _main() -> None:
    """The child: reads source and variables from standard input, writes what exhausted it, or nothing."""
    question = json.load(sys.stdin)
    _limit_resources()
    sandbox = Sandbox()
    try:
        template = sandbox.compiled(question["source"])
        for chat in _chats():
            for more in (False, True):
                try:
                    sandbox.rendered(template, {**question["variables"], "messages": chat, "tools": None, "documents": None, "add_generation_prompt": more})
                except (Exhausted, MemoryError, RecursionError):
                    raise
                except FAULTS:
                    continue
    except MemoryError:
        sys.stdout.write(f"more than {MEMORY_BYTES // 2**20} MB of memory")
    except RecursionError:
        sys.stdout.write("nesting or recursion without end")
    except Exhausted as error:
        sys.stdout.write(str(error))
    except FAULTS:
        pass  # does not compile: the caller compiles it too, and says so


if __name__ == "__main__":
    _main()
