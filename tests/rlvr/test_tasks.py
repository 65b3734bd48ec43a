import ast
import operator
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infotorch.rlvr.tasks import (
    CharCodec,
    Countdown,
    CountdownProblem,
    RunSum,
    RunSumProblem,
    TokenizerCodec,
    task,
)
from infotorch.rlvr.tasks.arithmetic import ParseError, parse

EASY = {"max_number": 6, "max_target": 12, "min_solutions": 12}
TASKS = [Countdown(**EASY), Countdown(3), RunSum(), RunSum((2, 10), noise=0.0)]


def tokens(task, text):
    return torch.tensor([*task.codec.encode(text), task.codec.eos_id])


# -- the parser, against Python's own syntax tree --------------------------------------------------------------------

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_by_python(text):
    def visit(node):
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        return OPERATORS[type(node.op)](visit(node.left), visit(node.right))

    try:
        return visit(ast.parse(text, mode="eval").body)
    except ZeroDivisionError:
        return None


expressions = st.recursive(
    st.integers(0, 12).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join), inner.map(lambda text: f"({text})")
    ),
    max_leaves=8,
)


@given(expressions)
@settings(max_examples=200, deadline=None)
def test_parser_agrees_with_python(text):
    assert parse(text).value == value_by_python(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+1",
        "1+",
        "1 +2",
        "(1",
        "1)",
        "1++2",
        "01",
        "1**2",
        "1//2",
        "()",
        "x",
        "(" * 60 + "1" + ")" * 60,
        "1" * 10,
    ],
)
def test_malformed_expressions(text):
    with pytest.raises(ParseError):
        parse(text)


def test_standard_form_ignores_the_order_of_operands_only():
    same = [("1+2", "2+1"), ("2*3+4", "4+3*2"), ("5-1-2", "5-2-1"), ("(1+2)*3", "3*(2+1)"), ("8/2*3", "3*8/2")]
    assert all(parse(a).form == parse(b).form for a, b in same)
    different = [("1+5", "2+4"), ("5-1", "1-5"), ("8/2", "2/8"), ("(1+2)*3", "1+2*3")]
    assert all(parse(a).form != parse(b).form for a, b in different)


# -- every task ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_problems_are_seeded_distinct_and_held_out(task):
    train, test = task.train(300, seed=1), task.test(40, seed=1)
    assert train == task.train(300, seed=1)
    assert train != task.train(300, seed=2)
    assert len(set(train)) == 300
    assert len(set(test)) == 40
    assert not set(train) & set(test)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_demonstrations_and_prompts_fit_and_parse(task):
    generator = torch.Generator().manual_seed(0)
    rewards = []
    for problem in task.train(50):
        prompt, demonstration = task.prompt(problem), task.demonstration(problem, generator)
        assert prompt.dtype == demonstration.dtype == torch.long
        assert len(prompt) <= task.max_prompt
        assert len(demonstration) <= task.max_response + 1
        assert demonstration[-1] == task.codec.eos_id
        rewards.append(task.reward(problem, demonstration))
        assert (task.canonical(problem, demonstration) is not None) == bool(rewards[-1])
        assert task.reward(problem, demonstration[:-1]) == 0.0  # not finished
    noisy = getattr(task, "noise", 0.0) > 0
    assert (0 < sum(rewards) < 50) if noisy else sum(rewards) == 50


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_garbage_gets_no_reward(task):
    problem = task.train(1)[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(2, task.codec.vocab_size, (3,), generator=generator)
        text = task.codec.decode(ids.tolist())
        if not any(character.isdigit() for character in text):
            assert task.reward(problem, torch.cat((ids, torch.tensor([task.codec.eos_id])))) == 0.0
    assert task.reward(problem, torch.tensor([], dtype=torch.long)) == 0.0


# -- Countdown -------------------------------------------------------------------------------------------------------


def test_countdown_checks_value_numbers_and_multiplicity():
    task, problem = Countdown(), CountdownProblem((3, 5, 8, 2), 11)
    right = ["3+8", "8+3", "5*2+3-2+0"[:-2], "3*5-8/2", "(5+8)-2", "8+5-2"]
    wrong = ["3+3+5", "11", "4+7", "3+8+", "8-3", "3+8=11", "10+1", "(3+8", "8/(3-3)", "5*2+3-2", "3+8,"]
    right.remove("5*2+3-2")  # uses the 2 twice
    assert [task.score(problem, text) for text in right] == [1.0] * len(right)
    assert [task.score(problem, text) for text in wrong] == [0.0] * len(wrong)


def test_countdown_problems_have_the_promised_solutions():
    task, different = Countdown(**EASY), []
    for problem in task.train(60):
        solutions = task.solutions(problem)
        assert len(solutions) >= 12
        assert all(task.score(problem, text) == 1.0 for text in solutions)
        assert problem.target not in problem.numbers
        different.append(len({task.normal_form(problem, text) for text in solutions}))
    assert sum(different) / 60 > 3


def test_countdown_solutions_are_complete():
    task, problem = Countdown(2), CountdownProblem((3, 5), 8)
    assert sorted(task.solutions(problem)) == ["3+5", "5+3"]
    assert sorted(task.solutions(CountdownProblem((3, 5), 15))) == ["3*5", "5*3"]
    assert task.solutions(CountdownProblem((3, 5), 2)) == ["5-3"]
    with pytest.raises(ValueError, match="has no solution"):
        task.demonstration(CountdownProblem((3, 5), 9), torch.Generator())


def test_countdown_precedence_of_templates():
    task = Countdown()
    assert "2+3*4-1" in task.solutions(CountdownProblem((2, 3, 4, 1), 13))
    assert "2-3*4*1" not in task.solutions(CountdownProblem((2, 3, 4, 1), 10))


def test_countdown_errors():
    with pytest.raises(ValueError, match="count: expected 2 to 5"):
        Countdown(6)
    with pytest.raises(ValueError, match="max_number: expected a positive integer"):
        Countdown(max_number=0)
    with pytest.raises(ValueError, match=r"count: only \d+ different training problems"):
        Countdown(2, max_number=2).train(1000)


# -- RunSum ----------------------------------------------------------------------------------------------------------


def test_run_sum_rewards_the_final_sum_only():
    task, problem = RunSum(terms=3), RunSumProblem((3, 5, 4))
    assert task.score(problem, "3,9,2;2") == 1.0
    for text in ("3,8,2;3", "3,8,2", "3,8;2;2", "3,8,2;", ";22"):
        assert task.score(problem, text) == 0.0


def test_run_sum_noise_is_carried_on():
    task, generator = RunSum(noise=0.12), torch.Generator().manual_seed(0)
    assert task.codec.vocab_size == 16
    problems = task.train(400)
    right = sum(task.reward(problem, task.demonstration(problem, generator)) for problem in problems) / 400
    assert abs(right - 0.88**5) < 0.1  # a second error may mend the first, which adds a few percent


def test_run_sum_errors():
    with pytest.raises(ValueError, match="terms: expected at least 2"):
        RunSum(terms=1)
    with pytest.raises(ValueError, match="noise: expected a probability"):
        RunSum(noise=1.0)


# -- codecs and names ------------------------------------------------------------------------------------------------


def test_char_codec_errors():
    with pytest.raises(ValueError, match="each character once"):
        CharCodec("aa")
    with pytest.raises(ValueError, match=r"got \['x'\]"):
        CharCodec("abc").encode("ax")


def test_a_task_with_the_tokenizer_of_a_model():
    class Words:
        eos_token_id, pad_token_id = 1, None

        def __len__(self):
            return 300

        def encode(self, text, add_special_tokens):
            assert not add_special_tokens
            return [ord(character) for character in text]

        def decode(self, ids, skip_special_tokens):
            return "".join(chr(index) for index in ids if index > 1)

    codec = TokenizerCodec(Words())
    assert codec.pad_id == codec.eos_id == 1
    task, problem = Countdown(**EASY).with_codec(codec), CountdownProblem((1, 2, 3, 4), 7)
    assert task.reward(problem, tokens(task, "3+4")) == 1.0
    assert task.prompt(problem).tolist() == [ord(character) for character in "1,2,3,4=7:"]
    Words.eos_token_id = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        TokenizerCodec(Words())


def test_unknown_task():
    assert isinstance(task("countdown"), Countdown)
    with pytest.raises(ValueError, match=r"name: expected one of \['countdown', 'runsum'\], got 'sudoku'"):
        task("sudoku")


def test_rechecks_repeat_the_chain_and_the_last_one_answers() -> None:
    task, g = RunSum(terms=3, noise=0.3, rechecks=2), torch.Generator().manual_seed(0)
    problem = RunSumProblem((3, 5, 4))
    sums = []
    for _ in range(200):
        text, _, answer = task.demonstration_text(problem, g).partition(";")
        assert text.split(",")[-1] == answer
        assert len(text) + len(answer) + 1 <= task.max_response
        sums.append(len(text.split(",")))
    share = {n: sums.count(n) / 200 for n in (3, 6, 9)}
    assert sum(share.values()) == 1
    assert 0.35 < share[3] < 0.65
    assert min(share[6], share[9]) > 0.1


def test_rechecks_out_of_range() -> None:
    with pytest.raises(ValueError, match="rechecks: expected at least 0"):
        RunSum(rechecks=-1)
