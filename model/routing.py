"""How a checkpoint's rows choose their experts: what one gating decision covers, as config.json says.

`"manta_routing": {"level": "sentence", "positions": 32}` or `{"level": "task", "tasks": ["python", "prose"]}`; without
the field, each row is gated on its own, as in Mixtral. No torch here: the gateway reads this too.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from model.config_fields import ConfigFields

FIELD = "manta_routing"

Level = Literal["token", "sentence", "task"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Routing:
    """What one gating decision covers.

    Args:
        level: `token`: one row; `sentence`: one sequence, decided from its beginning; `task`: one task.
        positions: At level sentence, how many positions decide; else 0.
        tasks: At level task, the tasks' names, in the order of the gates' rows; else none.
    """

    level: Level = "token"
    positions: int = 0
    tasks: tuple[str, ...] = ()


BY_TOKEN = Routing()


def read_routing(fields: ConfigFields) -> Routing:
    """Reads the routing of a config.json.

    Raises:
        ConfigError: It is not one that the level allows; names the field, its value, what is allowed and the remedy.
    """
    section = fields.section(FIELD)
    section.refuse_others("level", "positions", "tasks")
    level = cast("Level", section.choice("level", LEVELS, default="token"))
    if level != "sentence":
        section.refuse_present("positions", f'absent, as level is "{level}"')
    if level != "task":
        section.refuse_present("tasks", f'absent, as level is "{level}"')
    positions = section.integer("positions") if level == "sentence" else 0
    return Routing(level, positions, section.names("tasks") if level == "task" else ())
