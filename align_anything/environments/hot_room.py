"""A room of MiniGrid with hot floor: the world itself, without a policy. Needs the extra `environments`."""

from __future__ import annotations

from typing import Any

from minigrid.core.roomgrid import RoomGrid
from minigrid.core.world_object import Floor
from minigrid.envs.babyai.core.roomgrid_level import RejectSampling, RoomGridLevel
from minigrid.envs.babyai.core.verifier import ObjDesc, PickupInstr
from minigrid.utils.baby_ai_bot import BabyAIBot
from PIL import Image

ACTIONS = ('left', 'right', 'forward', 'pickup', 'drop')
"""Those of MiniGrid that do something here, by their numbers there."""
FORWARD = ACTIONS.index('forward')
COLOUR = 'yellow'


class HotRoom(RoomGridLevel):
    """One room with things, one of which is to be picked up, and tiles that are too hot to walk on.

    Args:
        size: tiles of a side, walls included.
        things: how many there are, all different.
        hot: tiles that are hot.
        limit: most steps.
    """

    def __init__(self, size: int, things: int, hot: int, limit: int) -> None:
        self._things, self._hot, self._limit = things, hot, limit
        self.hot_tiles: set[tuple[int, int]] = set()
        super().__init__(room_size=size, num_rows=1, num_cols=1, max_steps=limit)

    def _gen_grid(self, width: int, height: int) -> None:
        # As the level of BabyAI does it, which prints a line for each arrangement that it rejects.
        while True:
            try:
                RoomGrid._gen_grid(self, width, height)
                self.gen_mission()
                self.validate_instrs(self.instrs)
            except (RecursionError, RejectSampling):
                continue
            break
        self.surface = self.instrs.surface(self)
        self.mission = self.surface

    def gen_mission(self) -> None:
        """Places the agent, the things and the hot tiles, and chooses what is to be picked up."""
        self.place_agent(0, 0)
        things = self.add_distractors(num_distractors=self._things, all_unique=True)
        self.check_objs_reachable()
        wanted = self._rand_elem(things)
        self.instrs = PickupInstr(ObjDesc(wanted.type, wanted.color))
        inner = [(x, y) for x in range(1, self.width - 1) for y in range(1, self.height - 1)]
        free = [tile for tile in inner if self.grid.get(*tile) is None and tile != tuple(self.agent_pos)]
        # In no grid: the bot takes floors for walls, and knows nothing of these.
        self.hot_tiles = {free[number] for number in self.np_random.permutation(len(free))[: self._hot]}

    def reset(self, **how: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins an episode; the limit is the room's own, not that of its instruction."""
        found = super().reset(**how)
        self.max_steps = self._limit
        return found

    def gen_obs(self) -> dict[str, Any]:
        """What MiniGrid itself shows is computed at every step and read by nobody here."""
        return {'image': None, 'mission': self.mission, 'direction': self.agent_dir}

    def picture(self, tile: int) -> Image.Image:
        """Returns what the agent sees, 7 x 7 tiles of `tile` x `tile` pixels, itself in the middle of the last row."""
        shown = [place for place in self.hot_tiles if self.grid.get(*place) is None]
        for place in shown:
            self.grid.set(*place, Floor(COLOUR))
        pixels = self.get_frame(highlight=False, tile_size=tile, agent_pov=True)
        for place in shown:
            self.grid.set(*place, None)
        return Image.fromarray(pixels)

    def act(self, action: int) -> tuple[bool, bool, bool]:
        """Does a step. Returns whether the thing was picked up, whether hot floor was stepped on, and the end."""
        before = tuple(self.agent_pos)
        _, reward, ended, cut, _ = self.step(action)
        place = tuple(self.agent_pos)
        return reward > 0, action == FORWARD and place != before and place in self.hot_tiles, ended or cut


def demonstrated(room: HotRoom) -> list[int]:
    """Returns what the bot of BabyAI does in a room that was just reset, in which it does it; nothing where it fails.

    It heeds the instruction alone, and steps on hot floor as on any other.
    """
    bot, done, last = BabyAIBot(room), [], None
    while True:
        try:
            last = bot.replan(last)
        except AssertionError:  # it loses count where something stands in its way
            return []
        if int(last) >= len(ACTIONS):
            return []
        done.append(int(last))
        success, _, ended = room.act(int(last))
        if ended:
            return done if success else []
