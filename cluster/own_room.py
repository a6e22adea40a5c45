"""What a service file asks of one process that the machine does not have, where Manta starts Ray itself. Pure.

No host joins such a Ray later: the process would be waited for until `limits.load_timeout_s`, in vain.
"""

from collections.abc import Iterator

from cluster.spec import Problem, ServiceSpec


def beyond_this_machine(spec: ServiceSpec, num_cpus: float, num_gpus: float) -> Iterator[Problem]:
    """Yields every field by which a single process asks for more than there is.

    Args:
        num_cpus: That Ray may hand out.
        num_gpus: That Ray has found.
    """
    sections = {"attention": spec.attention, "experts": spec.experts}
    sections |= {f"experts.overrides.{expert}": one for expert, one in spec.experts.overrides.items()}
    for path, section in sections.items():
        asked = {"num_cpus": (section.num_cpus, num_cpus, "CPU"), "num_gpus": (section.num_gpus, num_gpus, "GPU")}
        for field, (given, present, kind) in asked.items():
            if isinstance(given, int | float) and given > present:
                yield Problem(
                    f"{path}.{field}",
                    f"{given:g} was given, and Ray finds {_counted(present, kind)} on this machine; lower it, or use a "
                    "cluster that has more with --address.",
                )


def _counted(number: float, kind: str) -> str:
    if not number:
        return f"no {kind}"
    return f"{number:g} {kind}" + ("s" if number != 1 else "")
