"""Which options a help page does not have."""

import pytest

from data.option_names import unknown_option

PAGE = """usage: command [options]

options:
  -h, --help            Show this help message and exit.
  -c CONFIG, --config CONFIG
                        YAML file with --no_option of its own
  --prompt PROMPT, --prompt+ PROMPT
  --model CONFIG        Path to a configuration file.
  --model.lr LR         learning rate
  --model.sizes SIZES   a mapping
  --rule CONFIG | CLASS_PATH_OR_NAME | .INIT_ARG_NAME VALUE
"""


@pytest.mark.parametrize(
    "args",
    [
        ["--config", "a.yaml", "-c", "b.yaml", "--help"],
        ["--prompt", "--bad", "--prompt+=x", "a b"],
        ["--model.lr=1", "--model", "m.yaml", "--model.sizes.small.width", "3"],
        ["--rule", "Rule", "--rule.timestep", "-500", "--rule.transition.timestep=3"],
        ["folder", "-3", "--", "-x"],
    ],
)
def test_what_the_page_or_a_class_may_have_is_left_to_the_parser(args: list[str]) -> None:
    assert unknown_option(PAGE, args, "program") is None


@pytest.mark.parametrize(
    "args, message",
    [
        (["--bad", "1"], "--bad is no option: see program --help"),
        (["--model.lr", "1", "--modle.lr=1"], "--modle.lr is no option: did you mean --model.lr?"),
        (["--model.size=1"], "--model.size is no option: did you mean --model.sizes?"),
        (["--model.rl.x", "1"], "--model.rl.x is no option: did you mean --model.lr?"),
        (["--no_option", "1"], "--no_option is no option: see program --help"),
    ],
)
def test_what_it_has_not_is_named(args: list[str], message: str) -> None:
    assert unknown_option(PAGE, args, "program") == message
