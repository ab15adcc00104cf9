"""What will be trained, as a table for people: modules, parameters, their share and learning rate by point or part.

It doesn't decide anything.
"""

from mgm_lora.lora.injection import OF_B, TrainableGroup, TrainableModel

_COLUMNS = ("trained", "how", "modules", "parameters", "share", "learning rate")


def list_trainable(trainable: TrainableModel) -> str:
    """A line for each group and one for all of them; the share is of all parameters, those of the adapters included."""
    num_parameters = {name: parameter.numel() for name, parameter in trainable.model.named_parameters()}
    num_all = sum(num_parameters.values())
    rows = [_COLUMNS]
    for group in trainable.groups:
        num = sum(num_parameters[name] for name in group.parameter_names)
        modules = f"{_num_modules(group, trainable=trainable):,}"
        rows.append(
            (
                group.name,
                _how(group, trainable=trainable),
                modules,
                f"{num:,}",
                _share(num, num_all),
                f"{group.learning_rate:g}",
            )
        )
    rows.append(("all", "", "", f"{trainable.num_trainable:,}", _share(trainable.num_trainable, num_all), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(_line(row, widths=widths) for row in rows)


def _num_modules(group: TrainableGroup, *, trainable: TrainableModel) -> int:
    named = {point.name: len(point.module_names) for point in trainable.points}
    return named.get(group.name) or len({name.rpartition(".")[0] for name in group.parameter_names})


def _how(group: TrainableGroup, *, trainable: TrainableModel) -> str:
    for point in trainable.points:
        if point.name == group.name.removesuffix(OF_B) and point.settings.mode == "lora":
            return f"{point.settings.method}, rank {point.settings.rank}, alpha {point.settings.alpha:g}"
    return "in full"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.3%}"


def _line(row: tuple[str, ...], *, widths: list[int]) -> str:
    text, numbers = row[:2], row[2:]
    cells = [f"{cell:<{width}}" for cell, width in zip(text, widths, strict=False)]
    cells += [f"{cell:>{width}}" for cell, width in zip(numbers, widths[2:], strict=True)]
    return "  ".join(cells).rstrip()
