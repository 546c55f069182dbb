"""The paper's claims as data (`config/paper/claims.yaml`): of which numbers each speaks, and where it holds."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ask.config.artifacts import Settings as Columns
from ask.config.artifacts import XSetting
from ask.config.base import Spec

Settings = dict[str, str | int | float | tuple[str | int | float, ...]]
"""Values of columns of an artifact's numbers; a list: any of these. `artifact` says where the numbers are."""
Sum = Annotated[tuple[Settings, ...], BeforeValidator(lambda given: (given,) if isinstance(given, dict) else given)]
COLUMNS = {*Columns.model_fields, "artifact", "line", "x"}
REGIONS = {"margin": ("least",), "value": ("value",), "straight": ("within",), "ratio": ("value", "least", "most")}
REGIONS |= {"equivalence": ("within", "most"), "slope": ("least", "most")}
"""What says where a shape holds: one of these, or `least` and `most`."""


class Part(Spec):
    """Comparisons of one kind: every number of `of` minus every number of `minus` that agrees with it in `by`."""

    shape: Literal["margin", "value", "wins", "rank", "equivalence", "ratio", "slope", "straight", "example"]
    """`margin`: at least so large; `value`: equal to a number; `wins`: above zero; `rank`: above all other numbers;
    `equivalence`: a difference that is small, or no larger than; `ratio`: a factor; `slope`: of a line over `along`;
    `straight`: a curve's distance from its line; `example`: one picture, which decides nothing."""
    artifact: str
    """Table or figure that holds the numbers."""
    datasets: tuple[str, ...] = ("",)
    """The paper's data sets that the claim speaks of, each compared by itself; none: whatever the artifact has."""
    where: Settings = Field(default_factory=dict)
    """Settings of all numbers; `eps` in the paper's unit, everything else as in the artifact's CSV."""
    by: tuple[str, ...] = ()
    """Columns in which the numbers of a comparison agree."""
    of: Sum = ()
    """Settings of the number that is judged; several: their sum."""
    minus: Sum = ()
    """Settings of the number that is subtracted; several: their sum."""
    along: Literal[XSetting, ""] = ""
    """Horizontal axis of a slope or straight curve."""
    several: Literal["all", "mean"] = "all"
    """Whether each comparison must hold (and Holm's correction refutes the claim), or their mean."""
    value: float | None = None
    """The number itself."""
    least: float | None = None
    """Smallest value with which the claim holds."""
    most: float | None = None
    """Largest value with which the claim holds."""
    within: float | None = Field(default=None, gt=0)
    """Largest distance from zero with which the claim holds."""
    tolerance: float = Field(default=0.0, ge=0)
    """By how much that region is wider, for what the paper rounds or leaves open; not beyond the direction's border."""
    above: float | None = None
    """Border of the claim's direction, which lies above it (of a margin: 0)."""
    floor: float = 0.0
    """Points of a straight curve that lie below are left out."""
    unit: str = "points"
    """Unit of the quantity."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = {name for name in ("value", "least", "most", "within") if getattr(self, name) is not None}
        takes, both = REGIONS.get(self.shape, ()), given == {"least", "most"}
        if not given <= {*takes} or bool(given) != bool(takes) or (len(given) > 1 and not both):
            said = f"{' or '.join(takes) or 'no region'}, not {', '.join(sorted(given)) or 'nothing'}"
            raise ValueError(f"shape {self.shape!r} takes {said}")
        if bool(self.along) != (self.shape in ("slope", "straight")):
            raise ValueError("`along` names the axis of a slope or straight curve; these need it, others have none")
        named = {column for settings in (self.where, self.by, *self.of, *self.minus) for column in settings}
        if named - COLUMNS:
            raise ValueError(f"no column {min(named - COLUMNS)!r}; choose from {', '.join(sorted(COLUMNS))}")
        if not self.of and not self.minus:
            raise ValueError("`of` or `minus` must say which number is judged")
        return self


class Contradiction(Spec):
    """Where the paper's own tables say otherwise of the same data set and quantity."""

    settings: Sum = ({},)
    """Settings of the comparisons that they contradict, each with the quantity as the paper `prints` it, which must lie
    on the side of the border that is measured; a list: any of these."""
    says: str
    """What they print; a full sentence."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(isinstance(one.get("prints"), int | float) for one in self.settings):
            raise ValueError("`prints` is the quantity as the paper's own table has it")
        return self


class Claim(Spec):
    """How a claim is judged; what it says stands in `claims.csv`."""

    parts: tuple[Part, ...] = Field(min_length=1)
    """Comparisons, all of which must hold."""
    contradiction: Contradiction | None = None
    """The paper against itself."""
    note: str = ""
    """What a reader of the verdict should know; full sentences."""


class Claims(Spec):
    """All claims."""

    test_images: dict[str, int]
    """Numbers of test images of the paper's data sets."""
    claims: dict[str, Claim]
    """By id."""
