"""What names the code has: for tests of documents that name its parts."""

import ast
import re
from functools import cache

import torch
from conftest import ROOT


@cache
def names_in(file):
    """Functions, classes, methods (also as Class.method), fields and constants of a file."""
    found = set()

    def visit(node, owner):
        for child in ast.iter_child_nodes(node):
            inner = owner
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                found.update({child.name, f"{owner}.{child.name}"})
                inner = child.name
            elif isinstance(child, ast.Assign | ast.AnnAssign):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                names = [getattr(t, "id", getattr(t, "attr", None)) for t in targets]
                found.update(names + [f"{owner}.{name}" for name in names])
            elif isinstance(child, ast.arg):
                found.add(child.arg)
            visit(child, inner)

    visit(ast.parse((ROOT / file).read_text("utf-8")), "")
    return found


@cache
def all_sources():
    rooms = (path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "benchmarks")
    files = [*ROOT.glob("*.py"), *(file for room in rooms for file in room.glob("*"))]
    return {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for path in files
        if path.suffix in (".py", ".c")
    }


@cache
def all_flags():
    """The flags of all commands."""
    import explain
    import export
    import predict
    import pretrained
    import serve
    from imaging import sample_flowers
    from system.flags import parser_of
    from training import flags

    commands = (explain, export, predict, pretrained, serve, sample_flowers, flags)
    parsers = [parser_of(command.Options) for command in commands]
    return {flag for parser in parsers for flag in parser._option_string_actions}


def is_known(name):
    """Whether the code has this name, flag, or file that it reads or writes."""
    if name.startswith("--"):
        return name.split()[0] in all_flags()
    if name.startswith("torch."):
        return hasattr(torch, name.removeprefix("torch."))
    if (ROOT / name).exists() or (ROOT / "docs" / "diagrams" / name).exists():
        return True
    if re.search(r"\.(pth|json|html|csv|png)$", name):
        return any(f'"{name}"' in source for source in all_sources().values())
    if name in {file.rsplit("/")[-1] for file in all_sources()}:
        return True
    return any(name in names_in(file) for file in all_sources() if file.endswith(".py"))


def quoted(text):
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", text)
