"""Reference of a module: signatures, parameter comments, types, source lines.

Parsed from the source with `ast`: nothing is imported, and types stay as written.
"""

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from structure import PACKAGE, ROOT, module_paths, resolve

Function = ast.FunctionDef | ast.AsyncFunctionDef
Link = Callable[[str], str]
FIELD = re.compile(r":(param|type|ivar|vartype|returns|rtype)\b")
Parameter = tuple[ast.arg, ast.expr | None]  # With its default


@dataclass
class Module:
    """A parsed module of the package."""

    name: str  # Within the package, e.g. `data.images`
    tree: ast.Module
    comments: dict[int, str]  # Line number -> trailing comment
    imported: dict[str, str] = field(default_factory=dict)  # Local name -> full name

    @property
    def full_name(self) -> str:
        """Name including the package."""
        return f"{PACKAGE}.{self.name}"

    def top_level(self) -> dict[str, ast.stmt]:
        """Public names with the statements that define them."""
        result = {}
        for node in self.tree.body:
            result |= {name: node for name in defined_by(node) if not name.startswith("_")}
        return result


def defined_by(node: ast.stmt) -> list[str]:
    """Names that a top-level statement defines."""
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    names = [n for t in targets for n in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [name.id for name in names if isinstance(name, ast.Name)]


def read_module(name: str, path: Path) -> Module:
    """Parse a module and its trailing comments."""
    source = path.read_text(encoding="utf-8")
    comments = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }
    comments = {line: text for line, text in comments.items() if not text.startswith("%%")}
    module = Module(name, ast.parse(source), comments)
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom):  # nbdev makes imports within the package relative
            source_module = resolve(name, node)
            if source_module.startswith(f"{PACKAGE}."):
                module.imported |= {
                    alias.asname or alias.name: f"{source_module}.{alias.name}"
                    for alias in node.names
                }
        elif isinstance(node, ast.Import):  # import space_warps.room.module as module
            module.imported |= {one.asname: one.name for one in node.names if one.asname}
    module.imported |= {name: f"{module.full_name}.{name}" for name in module.top_level()}
    return module


def read_package(root: Path = ROOT) -> dict[str, Module]:
    """All modules, by name within the package."""
    return {name: read_module(name, path) for name, path in module_paths(root).items()}


def all_names(modules: dict[str, Module]) -> dict[str, str]:
    """Every unambiguous way to write a public name -> its full name."""
    result: dict[str, set[str]] = {}
    for module in modules.values():
        for name, node in module.top_level().items():
            for item in [name, *(f"{name}.{method.name}" for method in public_methods(node))]:
                target = f"{module.full_name}.{item}"
                in_room = f"{module.name.split('.')[0]}.{item}"
                for alias in {
                    item,
                    f"{PACKAGE}.{item}",
                    in_room,
                    f"{PACKAGE}.{in_room}",
                    f"{module.name}.{item}",
                    target,
                }:
                    result.setdefault(alias, set()).add(target)
    return {name: targets.pop() for name, targets in result.items() if len(targets) == 1}


def lines_of(modules: dict[str, Module], module: str, name: str) -> tuple[int, int] | None:
    """First and last line of a function, class or method; None if there is no such name."""
    first, *rest = name.split(".")
    node: ast.stmt | None = modules[module.removeprefix(f"{PACKAGE}.")].top_level().get(first)
    for part in rest:
        matches = [n for n in getattr(node, "body", []) if part in defined_by(n)]
        node = matches[0] if matches else None
    return (node.lineno, node.end_lineno or node.lineno) if node is not None else None


def docstring(node: ast.stmt) -> str:
    """Docstring of a function or class; empty for a value."""
    return ast.get_docstring(node) or "" if isinstance(node, Function | ast.ClassDef) else ""


def public_methods(node: ast.stmt) -> Iterator[Function]:
    """Public methods of a class, without setters and deleters."""
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            marks = [ast.unparse(mark) for mark in getattr(item, "decorator_list", [])]
            is_accessor = any(mark.endswith((".setter", ".deleter")) for mark in marks)
            if isinstance(item, Function) and not item.name.startswith("_") and not is_accessor:
                yield item


def describe(module: Module, name: str, link: Link) -> str:
    """Sphinx directive for a public name, in MyST Markdown."""
    node = module.top_level()[name]
    if isinstance(node, ast.ClassDef):
        return _class(module, node, link)
    if isinstance(node, Function):
        return _function(module, node, link)
    return _value(module, name, node)


def _value(module: Module, name: str, node: ast.stmt) -> str:
    assert isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
    comment = module.comments.get(node.end_lineno or 0, "")
    if re.fullmatch(r"[A-Z][a-z]\w*", name):
        canonical = f":canonical: {_full(module, node.value)}"
        return _directive("py:type", name, module, [comment], canonical)
    value = " ".join(ast.unparse(node.value).split())
    return _directive(
        "py:data", name, module, [comment], f":value: {value}" if len(value) < 80 else ""
    )


def _function(module: Module, node: Function, link: Link) -> str:
    head = f"{node.name}({_arguments(node)})"
    body = [link(docstring(node)), *_fields(module, node, link)]
    return _directive("py:function", head, module, body)


def _class(module: Module, node: ast.ClassDef, link: Link) -> str:
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    init = next((f for f in node.body if isinstance(f, Function) and f.name == "__init__"), None)
    body, head = [link(docstring(node))], node.name
    if init is not None:
        head += f"({_arguments(init, skip=1)})"
        body += _fields(module, init, link, skip=1)
    elif any("Protocol" in ast.unparse(base) for base in node.bases):
        body += [line for item in fields for line in _attribute(module, item, link, "var")]
    elif fields:
        head += f"({', '.join(_field(item) for item in fields)})"
        body += [line for item in fields for line in _attribute(module, item, link)]
    parts = [_member(module, item, link) for item in public_methods(node)]
    return _directive("py:class", head, module, [*body, *parts])


def _field(node: ast.AnnAssign) -> str:
    name = ast.unparse(node.target)
    return f"{name}={_short(node.value)}" if node.value is not None else name


def _attribute(module: Module, node: ast.AnnAssign, link: Link, kind: str = "") -> list[str]:
    comment = link(module.comments.get(node.end_lineno or 0, ""))
    name, annotation = ast.unparse(node.target), _full(module, node.annotation)
    args = ("ivar", "vartype") if kind == "var" else ("param", "type")
    return [f":{args[0]} {name}: {comment}", f":{args[1]} {name}: {annotation}"]


def _member(module: Module, node: Function, link: Link) -> str:
    marks = {ast.unparse(item) for item in node.decorator_list}
    text = link(docstring(node))
    if any("property" in mark for mark in marks):
        option = f":type: {_full(module, node.returns)}" if node.returns else ""
        comment = _comment_of_return(module, node, link)
        return _directive("py:property", node.name, module, [text, comment], option)
    static = "staticmethod" in marks
    option = ":staticmethod:" if static else ":classmethod:" if "classmethod" in marks else ""
    head = f"{node.name}({_arguments(node, skip=0 if static else 1)})"
    body = [text, *_fields(module, node, link, skip=0 if static else 1)]
    return _directive("py:method", head, module, body, option)


def _directive(kind: str, head: str, module: Module, body: list[str], option: str = "") -> str:
    fence = "::::" if kind == "py:class" else ":::"
    where = "" if kind in ("py:method", "py:property") else f":module: {module.full_name}"
    lines = [f"{fence}{{{kind}}} {head}", *(line for line in (where, option) if line)]
    after_field = False
    for part in filter(None, body):
        is_field = FIELD.match(part) is not None
        lines += [part] if is_field and after_field else ["", part]  # no empty line between fields
        after_field = is_field
    return "\n".join([*lines, fence])


def _short(node: ast.expr | None) -> str:
    """A default value; `...` if it is long."""
    text = " ".join(ast.unparse(node).split()) if node is not None else ""
    return text if len(text) <= 40 else "..."


def _parameters(node: Function, skip: int) -> tuple[list[Parameter], list[Parameter]]:
    """Positional parameters without the first `skip`, and keyword-only ones."""
    args = node.args
    positional = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    by_position = list(zip(positional, [*defaults, *args.defaults], strict=True))[skip:]
    return by_position, list(zip(args.kwonlyargs, args.kw_defaults, strict=True))


def _arguments(node: Function, skip: int = 0) -> str:
    """Names and defaults of parameters; types follow in the fields."""
    positional, keyword_only = _parameters(node, skip)
    vararg = node.args.vararg
    star = [f"*{vararg.arg}"] if vararg else ["*"] if keyword_only else []
    rest = [f"**{node.args.kwarg.arg}"] if node.args.kwarg else []
    text = [[_argument(*item) for item in pairs] for pairs in (positional, keyword_only)]
    return ", ".join([*text[0], *star, *text[1], *rest])


def _argument(arg: ast.arg, default: ast.expr | None) -> str:
    return f"{arg.arg}={_short(default)}" if default is not None else arg.arg


def _fields(module: Module, node: Function, link: Link, skip: int = 0) -> list[str]:
    """Parameters and return value, with their comments and types."""
    positional, keyword_only = _parameters(node, skip)
    varargs: list[Parameter] = [(node.args.vararg, None)] if node.args.vararg else []
    parameters = [*positional, *varargs, *keyword_only]
    last = {(d or a).end_lineno: a for a, d in parameters}
    last.pop(node.returns.end_lineno if node.returns else None, None)  # whose comment it is
    lines = []
    for arg, default in parameters:
        line = (default or arg).end_lineno or 0
        comment = link(module.comments.get(line, "")) if last.get(line) is arg else ""
        lines.append(f":param {arg.arg}: {comment}")
        if arg.annotation is not None:
            lines.append(f":type {arg.arg}: {_full(module, arg.annotation)}")
    if node.returns is not None and ast.unparse(node.returns) != "None":
        if comment := _comment_of_return(module, node, link):
            lines.append(f":returns: {comment}")
        lines.append(f":rtype: {_full(module, node.returns)}")
    return lines


def _comment_of_return(module: Module, node: Function, link: Link) -> str:
    line = (node.returns.end_lineno or 0) if node.returns is not None else 0
    return link(module.comments.get(line, ""))


def _full(module: Module, annotation: ast.expr) -> str:
    """A type as written, with full names of the package so that they become links."""
    text = " ".join(ast.unparse(annotation).strip("'\"").split())

    def full(match: "re.Match[str]") -> str:
        return module.imported.get(match[0], match[0])

    return re.sub(r"(?<![\w.'\"])[A-Za-z_]\w*(?![\w'\"])", full, text)
