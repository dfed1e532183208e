"""Whether a definition is as large as the settings allow: looked at when it is loaded."""

from orchestrator.core.definition import Definition
from orchestrator.core.limits import Bounds


def bounds_problems(definition: Definition, bounds: Bounds) -> list[str]:
    """Everything that is too large, in words that name the setting."""
    found = []
    steps = len(definition.steps)
    if steps > bounds.steps_max:
        found.append(f"it has {steps} steps; SAGA_STEPS_MAX allows {bounds.steps_max}")
    first = sum(not step.after for step in definition.steps)
    together = {
        "begin at the start": first,
        **{f"follow step {name!r}": len(names) for name, names in definition.successors.items()},
    }
    found += [
        f"{count} steps {how} together; SAGA_BRANCHES_MAX allows {bounds.branches_max}"
        for how, count in together.items()
        if count > bounds.branches_max
    ]
    found += [
        f"step {step.name!r}: items_max is {step.items_max}; SAGA_ITEMS_MAX allows "
        f"{bounds.items_max}"
        for step in definition.steps
        if step.each is not None and step.items_max > bounds.items_max
    ]
    return found
