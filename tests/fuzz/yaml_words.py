"""What YAML files are made of: the names of a schema's fields, and YAML's own marks."""

from spec.section import Section, is_section, section_in

MARKS = (
    b"&a ", b"*a", b"<<: ", b"- ", b"? ", b"!!float ", b"!!set ", b"!!binary ", b"!!omap ", b"!!timestamp ", b"|\n ",
    b">-\n ", b"{", b"}", b"[", b"]", b"null", b"~", b"true", b".nan", b".inf", b"-.inf", b"1e999", b"0x7f", b"0o17",
    b"1:30", b"2001-01-01", b"'", b'"', b"---\n", b"...\n", b"%YAML 1.1\n", b"\n  ", b"\n    ", b": ",
)  # fmt: skip


def yaml_words(root: type[Section]) -> tuple[bytes, ...]:
    """The words of one kind of file."""
    return (*(f"{name}: ".encode() for name in sorted(_fields(root))), *MARKS)


def _fields(section: type[Section]) -> set[str]:
    names: set[str] = set()
    for name, field in section.model_fields.items():
        names.add(name)
        inner = section_in(field.annotation)
        if inner is not None and is_section(inner):
            names |= _fields(inner)
    return names
