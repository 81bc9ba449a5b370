"""Pages of the modules for the documentation site: signatures, docstrings, and the comments beside parameters.

Modules are read and not imported, so that the site is built without TensorFlow.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function, or a field of a class."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass
class Module:
    """A module with public names."""

    name: str  # such as crypto_lstm.data.candles
    doc: str
    public: list[str]
    notebook: str  # relative to the repository, "" if unknown
    tree: ast.Module
    comments: dict[int, str] = field(repr=False)  # line -> text of its comment

    @property
    def short_name(self) -> str:
        return self.name.removeprefix("crypto_lstm.")


def list_modules(package: Path) -> list[Module]:
    """The modules of the package that have public names, in the order of their names."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        if parts[-1] in ("__init__", "_modidx"):
            continue
        text = path.read_text(encoding="utf-8")
        module = read_module(".".join(parts), text, path)
        if module.public:
            found.append(module)
    return found


def read_module(name: str, text: str, path: Path) -> Module:
    tree = ast.parse(text)
    public = next((ast.literal_eval(node.value) for node in tree.body if is_assignment(node, "__all__")), [])
    source = re.search(r"File to edit: ([./\w]+\.ipynb)", text)
    root = next(parent for parent in path.parents if (parent / "nbs").is_dir())
    notebook = (path.parent / source.group(1)).resolve().relative_to(root).as_posix() if source else ""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = re.sub(r"\s*(fmt: skip|noqa.*|type: ignore.*)$", "", token.string.lstrip("# "))
    return Module(name, ast.get_docstring(tree) or "", list(public), notebook, tree, comments)


def is_assignment(node: ast.stmt, name: str) -> bool:
    """Whether a statement assigns to this name."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def find_definition(module: Module, name: str) -> ast.stmt | None:
    """The last definition of a name at the top of a module."""
    found = None
    for node in module.tree.body:
        if isinstance(node, Definition) and node.name == name or is_assignment(node, name):
            found = node
    return found


# ---------------------------------------------------------------- parameters


def list_parameters(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Parameter]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    pairs = list(zip(positional, [*defaults, *arguments.defaults], strict=True))
    if arguments.vararg:
        pairs.append((rename(arguments.vararg, "*"), None))
    pairs += list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    if arguments.kwarg:
        pairs.append((rename(arguments.kwarg, "**"), None))
    for argument, default in pairs:
        if argument.arg in ("self", "cls"):
            continue
        last = max(argument.end_lineno or 0, default.end_lineno or 0 if default else 0)
        meaning = "" if last == function.lineno else module.comments.get(last, "")
        shown = "" if default is None else ast.unparse(default)
        yield Parameter(argument.arg, show(argument.annotation), shown, meaning)


def rename(argument: ast.arg, stars: str) -> ast.arg:
    return ast.copy_location(ast.arg(stars + argument.arg, argument.annotation), argument)


def show(node: ast.expr | None) -> str:
    if node is None:
        return ""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def list_fields(module: Module, node: ast.ClassDef) -> Iterator[Parameter]:
    """Annotated fields of a class, those of a private base in the same module first."""
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id.startswith("_"):
            parent = find_definition(module, base.id)
            if isinstance(parent, ast.ClassDef):
                yield from list_fields(module, parent)
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and not part.target.id.startswith("_"):
            default = "" if part.value is None else ast.unparse(part.value)
            meaning = module.comments.get(part.end_lineno or 0, "")
            yield Parameter(part.target.id, show(part.annotation), default, meaning)


def find_returned(module: Module, function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The comment beside the return type."""
    end = function.returns.end_lineno if function.returns else None
    return module.comments.get(end or 0, "")


# ---------------------------------------------------------------- Markdown


def write_page(module: Module, notebook: Path | None, link: Callable[[str], str]) -> str:
    """The page of a module."""
    parts = [f"# {module.short_name}", link(write_text(module.doc))]
    if notebook is not None:
        parts.append(f"Source, explanation and tests: [{notebook.stem}](../{notebook.as_posix()})")
    parts.append(f":::{{py:module}} {module.name}\n:::")
    for name in sorted(module.public, key=lambda name: not isinstance(find_definition(module, name), Definition)):
        parts += write_name(module, name, link)  # functions and classes first, then values
    return "\n\n".join(parts) + "\n"


def write_name(module: Module, name: str, link: Callable[[str], str]) -> list[str]:
    node = find_definition(module, name)
    parts = [f"## {name}"]
    if isinstance(node, ast.ClassDef):
        return parts + write_class(module, node, link)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return parts + [write_function(module, node, "function", name, link)]
    if node is None:
        return parts + [f"::::{{py:data}} {name}\n::::"]
    value = ast.unparse(node.value) if getattr(node, "value", None) is not None else ""
    shown = textwrap.shorten(value, 200, placeholder=" ...")
    meaning = module.comments.get(node.end_lineno or 0, "") or module.comments.get(node.lineno, "")
    body = f"{link(escape(meaning))}\n\n```python\n{name} = {shown}\n```"
    return parts + [fence("py:data", name, body)]


_SHOWN_PARAMETERS = 6  # in the line of a class; a table below names all of them


def write_class(module: Module, node: ast.ClassDef, link: Callable[[str], str]) -> list[str]:
    fields = list(list_fields(module, node))
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    start = next((part for part in methods if part.name == "__init__"), None)
    parameters = list(list_parameters(module, start)) if start else fields
    title = "parameter" if start else "field"
    bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases if not ast.unparse(base).startswith("_"))
    body = [f"Base: {bases}"] if bases else []
    body += [link(write_text(ast.get_docstring(node) or "")), write_table(title, parameters, link)]
    is_short = len(parameters) <= _SHOWN_PARAMETERS
    signature = f"{node.name}({write_signature(parameters)})" if is_short else node.name
    parts = [fence("py:class", signature, "\n\n".join(filter(None, body)))]
    for method in methods:
        decorators = {ast.unparse(one) for one in method.decorator_list}
        if not method.name.startswith("_") and f"{method.name}.setter" not in decorators:
            kind = "property" if {"property", "cached_property"} & decorators else "method"
            parts.append(write_function(module, method, kind, f"{node.name}.{method.name}", link))
    return parts


def write_function(
    module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef, kind: str, name: str, link: Callable[[str], str]
) -> str:
    parameters = list(list_parameters(module, node))
    returned, meaning = show(node.returns), find_returned(module, node)
    body = [link(write_text(ast.get_docstring(node) or "")), write_table("parameter", parameters, link)]
    if meaning:
        body.append(f"**Returns** {link(escape(meaning))}")
    signature = name if kind == "property" else f"{name}({write_signature(parameters)})"
    if returned and kind != "property":
        signature += f" -> {returned}"
    return fence(f"py:{kind}", signature, "\n\n".join(filter(None, body)))


def write_signature(parameters: list[Parameter]) -> str:
    return ", ".join(one.name + (f"={one.default}" if one.default else "") for one in parameters)


def fence(kind: str, signature: str, body: str) -> str:
    return f"::::{{{kind}}} {' '.join(signature.split())}\n\n{body}\n\n::::"


def write_table(title: str, parameters: list[Parameter], link: Callable[[str], str]) -> str:
    if not parameters:
        return ""
    lines = [f"| {title} | type | default | meaning |", "|---|---|---|---|"]
    for one in parameters:
        cells = [code(one.name), code(one.type), code(one.default), link(escape(one.meaning)).replace("|", "\\|")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def code(text: str) -> str:
    shown = textwrap.shorten(" ".join(text.split()), 90, placeholder=" ...").replace("|", "\\|").replace("`", "'")
    return f"`{shown}`" if shown else ""


def escape(text: str) -> str:
    """Prose of a comment or a docstring in Markdown: what stands in backticks stays, signs of Markdown are escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*<\[\]$~])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def write_text(docstring: str) -> str:
    """A docstring in Markdown: examples become code blocks."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(docstring))
    return "\n\n".join(write_block(block) for block in blocks if block.strip())


def write_block(block: str) -> str:
    lines = block.split("\n")
    start = next((place for place, line in enumerate(lines) if line.lstrip().startswith(">>>")), None)
    if start is None:
        if all(line.startswith("    ") for line in lines):  # a block of code
            return f"```text\n{textwrap.dedent(block)}\n```"
        return "\n".join(escape(line) for line in lines)
    before = "\n".join(escape(line) for line in lines[:start])
    example = textwrap.dedent("\n".join(lines[start:]))
    example = re.sub(r"\s*# doctest:.*", "", example)
    return f"{before}\n\n```pycon\n{example}\n```".lstrip()
