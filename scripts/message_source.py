"""Reads the error messages of a module, for `read_messages.py`: of Python with its own parser, of C++ by its calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Message", "Reader", "is_specific", "read_native"]

# what stands for a part of a message that is computed
HOLE = "{}"
# the least that a message must have to name one place: constant characters, and words
LETTERS, WORDS = 18, 3
LOGGED = {"error", "critical", "exception", "fatal"}
# names in conditions and messages that are no setting
ORDINARY = frozenset(re.findall(r"\S+",
    "self cls model config name value type len int str isinstance hasattr getattr any all not none true false data "
    "key keys args kwargs path file size shape dtype device request prompt index item items weight weights layer "
    "layers param params x y i j k n num re os sys torch logger version is_cuda is_rocm platform current_platform "
))  # fmt: skip


# words that say nothing about one message
COMMON = frozenset(re.findall(r"\S+",
    "a an the is are be was were been not no of for in on to by with from at as and or if it its this that these "
    "you your has have had can cannot can't could do does doesn don did will would should must may might only yet "
    "also supported support supports unsupported invalid unknown failed fail fails error errors expected unexpected "
    "found missing required requires require valid value values type types got but than one of all any when while "
    "than which please use using used set file path found could create open read write load initialize get return "
    "returned given argument input output model name number must exist exists already provided specified currently "
    "implemented allowed available try instead either both must when each same new run call cant able unable due "
    "there here so because "
))  # fmt: skip


@dataclass(frozen=True)
class Message:
    """`text` has `HOLE` for each computed part; `raised` is the exception, `log` for a logged error."""

    text: str
    raised: str
    place: str
    names: tuple[str, ...]


class Reader(ast.NodeVisitor):
    """Collects the messages of one module."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module = module
        self.found: list[Message] = []
        self.scope: list[str] = []
        self.conditions: list[tuple[str, ...]] = []
        # texts that are raised later: `msg = f"…"; raise ValueError(msg)`
        self.texts: list[dict[str, ast.expr]] = [{}]
        self.visit(tree)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._enter(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before, self.conditions = self.conditions, []
        self._enter(node.name, node.body)
        self.conditions = before

    visit_AsyncFunctionDef = visit_FunctionDef

    def _enter(self, name: str, body: list[ast.stmt]) -> None:
        self.scope.append(name)
        self.texts.append({})
        for statement in body:
            self.visit(statement)
        self.texts.pop()
        self.scope.pop()

    def visit_If(self, node: ast.If) -> None:
        self.conditions.append(tuple(read_names(node.test)))
        for statement in (*node.body, *node.orelse):
            self.visit(statement)
        self.conditions.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name) and read_text(node.value, {}):
            self.texts[-1][node.targets[0].id] = node.value
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        if isinstance(node.exc, ast.Call) and node.exc.args:
            self._add(node.exc.args, read_name(node.exc.func).rpartition(".")[2])
        self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        if node.msg is not None:
            self.conditions.append(tuple(read_names(node.test)))
            self._add([node.msg], "AssertionError")
            self.conditions.pop()

    def visit_Call(self, node: ast.Call) -> None:
        owner, _, name = read_name(node.func).rpartition(".")
        if name in LOGGED and "log" in owner.lower() and node.args:
            self._add(node.args[:1], "log")
        elif name == "_check" and owner == "torch" and len(node.args) > 1 and isinstance(node.args[1], ast.Lambda):
            self._add([node.args[1].body], "RuntimeError")
        self.generic_visit(node)

    def _add(self, arguments: list[ast.expr], raised: str) -> None:
        texts = {name: value for scope in self.texts for name, value in scope.items()}
        parts = [read_text(one, texts) for one in arguments]
        # Python prints several arguments as a tuple
        text = parts[0] if len(parts) == 1 else HOLE.join(part.strip() for part in parts)
        text = shorten(re.sub(r"%[-\d.]*[sdrfixg]", HOLE, text) if raised == "log" else text)
        if not is_specific(text):
            return
        used = [
            name
            for one in arguments
            for name in read_names(texts.get(one.id, one) if isinstance(one, ast.Name) else one)
        ]
        names = dict.fromkeys((*(name for group in self.conditions[-3:] for name in group), *used))
        self.found.append(Message(text, raised, f"{self.module}:{'.'.join(self.scope[-2:])}", tuple(names)))


def read_name(node: ast.expr) -> str:
    """`a.b.c` as it is written; "" for any other expression."""
    if isinstance(node, ast.Attribute):
        owner = read_name(node.value)
        return f"{owner}.{node.attr}" if owner else node.attr
    return node.id if isinstance(node, ast.Name) else ""


def read_names(node: ast.expr) -> Iterator[str]:
    """The names in an expression that may be settings: attributes, variables, and `envs.NAME`."""
    for one in ast.walk(node):
        name = one.attr if isinstance(one, ast.Attribute) else one.id if isinstance(one, ast.Name) else ""
        if len(name) > 2 and name.lower() not in ORDINARY:
            yield name


def read_text(node: ast.expr | None, texts: dict[str, ast.expr]) -> str:
    """The constant parts of a message, with `HOLE` for the others; "" if nothing is constant."""
    match node:
        case ast.Constant(value=str() as value):
            return value.replace("{", "(").replace("}", ")") if HOLE in value else value
        case ast.JoinedStr(values=values):
            return "".join(read_text(one, texts) or HOLE for one in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (read_text(left, texts) or HOLE) + (read_text(right, texts) or HOLE)
        case ast.BinOp(left=left, op=ast.Mod()):
            return re.sub(r"%(?:\(\w+\))?[-\d.]*[sdrfixg]", HOLE, read_text(left, texts))
        case ast.Call(func=ast.Attribute(value=value, attr="format")):
            return re.sub(r"\{[^{}]*\}", HOLE, read_text(value, texts))
        case ast.Tuple(elts=elements):
            return HOLE.join(read_text(one, texts) for one in elements)
        case ast.Name(id=name) if name in texts:
            return read_text(texts[name], {})
    return ""


def shorten(text: str) -> str:
    """`text` in one line, and at most 200 characters: a log cuts long messages, and the start names the place."""
    text = re.sub(r"(?:\{\}\s*)+", HOLE, " ".join(text.split()))
    return text if len(text) <= 200 else text[:200].rpartition(" ")[0]


def is_specific(text: str) -> bool:
    """Whether the constant parts of `text` name one place: long enough, and with words that few messages have."""
    parts = text.split(HOLE)
    words = {word.lower() for word in re.findall(r"[A-Za-z_]{2,}", " ".join(parts))}
    return sum(map(len, parts)) >= LETTERS and len(words) >= WORDS and len(words - COMMON) >= 2


# calls of C++ that print or throw an error, and the text after them
NATIVE = re.compile(
    r"\b(?P<call>LLAMA_LOG_ERROR|GGML_LOG_ERROR|LOG_ERR|SRV_ERR|SLT_ERR|GGML_ABORT|runtime_error|invalid_argument)"
    r'\(\s*(?:(?:string_)?format\(\s*)?(?P<text>"(?:[^"\\]|\\.)*"(?:\s*"(?:[^"\\]|\\.)*")*)'
)
FUNCTION = re.compile(r"^[A-Za-z_][\w:<>*&\s,]*?[\s*&](?P<name>[\w:~]+)\s*\([^;]*$")


def read_native(module: str, text: str) -> Iterator[Message]:
    """The messages of a C++ file, with the functions that contain them."""
    starts = [(match.start(), match["name"]) for match in re.finditer(FUNCTION.pattern, text, re.M)]
    for match in NATIVE.finditer(text):
        words = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', match["text"])).replace("\\n", " ").replace('\\"', '"')
        words = re.sub(r"%[-+\d.*]*(?:ll|z|l|h)?[sdufxpgic]|%\"\s*PRI\w+", HOLE, words)
        words = shorten(re.sub(r"^\{\}: ?(?:error: )?", "", words))
        function = next((name for start, name in reversed(starts) if start < match.start()), "")
        if is_specific(words):
            yield Message(words, match["call"], f"{module}:{function}", ())
