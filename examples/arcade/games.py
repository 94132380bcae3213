"""The sixteen games of the arcade clips: who moves, by which actions, and where the console keeps its position."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Game:
    """A game as captions speak of it."""

    player: str  # what the player moves, as a noun phrase
    moves: dict[str, str]  # name of an ALE action -> the movement that it asks for
    position: int | None = None  # byte of the console's memory with the player's position
    increases: str | None = None  # the action of `moves` that increases it
    ball: int | None = None  # byte with the ball's position on the same axis

    def opposite(self, action: str) -> str:
        """The other one of two actions."""
        return next(move for move in self.moves if move != action)


SIDEWAYS = {"LEFT": "moves left", "RIGHT": "moves right"}
UPRIGHT = {"UP": "moves up", "DOWN": "moves down"}

# Bytes of positions: AtariARI (arXiv:1906.08226), each checked by holding both actions.
GAMES = {
    "asterix": Game("Asterix", SIDEWAYS, position=41, increases="RIGHT"),
    "bowling": Game("the bowler", UPRIGHT),
    "boxing": Game("the white boxer", SIDEWAYS, position=32, increases="RIGHT"),
    "breakout": Game("the paddle", SIDEWAYS, position=72, increases="RIGHT", ball=99),
    "enduro": Game("the car", {"LEFT": "steers left", "RIGHT": "steers right"}),
    "fishing derby": Game("the left line", SIDEWAYS | {"DOWN": "sinks", "UP": "rises"}),
    "freeway": Game("the chicken", UPRIGHT, position=14, increases="UP"),
    "frostbite": Game("the builder", SIDEWAYS, position=102, increases="RIGHT"),
    "gopher": Game("the farmer", SIDEWAYS),
    "ms pacman": Game("Ms. Pac-Man", SIDEWAYS, position=10, increases="RIGHT"),
    # The paddle's controller turns: RIGHT is up on the screen.
    "pong": Game(
        "the right paddle",
        {"RIGHT": "moves up", "LEFT": "moves down"},
        position=51,
        increases="LEFT",
        ball=54,
    ),
    "qbert": Game(
        "Q*bert",
        {
            "UP": "hops up right",
            "RIGHT": "hops down right",
            "LEFT": "hops up left",
            "DOWN": "hops down left",
        },
    ),
    "riverraid": Game("the jet", SIDEWAYS, position=51, increases="RIGHT"),
    "seaquest": Game("the submarine", SIDEWAYS, position=70, increases="RIGHT"),
    "space invaders": Game("the cannon", SIDEWAYS, position=28, increases="RIGHT"),
    "tennis": Game("the near player", SIDEWAYS, position=26, increases="RIGHT"),
}
