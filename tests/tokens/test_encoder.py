"""Laws 6, 11 and 16, on tokenizers of eleven kinds and chat templates of thirteen families."""

from itertools import product
from typing import NamedTuple

import pytest
from transformers import PreTrainedTokenizerFast

from llama_peft.data import Answer, QuestionExample
from llama_peft.prefix_tree import pack
from llama_peft.recipe import Prompt
from llama_peft.tokens import spans
from llama_peft.tokens.prompts import SPAN_SUFFIX, Encoded, PromptEncoder, answer_text, parse_answer
from tests.tokens.small_tokenizers import BOS, EOS, KINDS, small_tokenizer

CONTEXTS = [
    "Paris is in France. It has 2,100,000 people.",
    "It was built in 1889.\n",
    "\n\nA list:\n- one\n- two\n\n",
    "  spaces  around   ",
    "Das Café öffnet um 8:30 Uhr…",
    "東京は日本の首都です。",
    "👩‍🔬 said 'no'!",
    "code():\n\treturn 1\n",
    "ends in a question?",
    "U.S.A. (1999)",
]
QUESTIONS = ["Where is it?", "When\n", " who built it ", "なに？", "100%?"]
EXAMPLES = [
    QuestionExample(id=str(i), question=question, context=context, answers=answers)
    for i, ((context, question), answers) in enumerate(
        (pair, (Answer(pair[0].split()[-1], pair[0].rindex(pair[0].split()[-1])),) if i % 3 else ())
        for i, pair in enumerate(product(CONTEXTS, QUESTIONS))
    )
]


class Family(NamedTuple):
    """A chat template, its control tokens, and the end of an answer in it."""

    template: str
    control: tuple[str, ...]
    end: str


def turns(user: str, assistant: str, first: str = "") -> str:
    """Return a template that writes a user's and an assistant's turn."""
    return (
        f"{first}{{% for m in messages %}}{{% if m.role == 'assistant' %}}{assistant}"
        f"{{% else %}}{user}{{% endif %}}{{% endfor %}}"
    )


SAYS, ROLE = "{{ m.content }}", "{{ m.role }}"
FAMILIES = {
    "llama 2": Family(turns(f"{BOS}[INST] {SAYS} [/INST]", f" {SAYS} {EOS}"), (), EOS),
    "llama 3": Family(
        turns(*[f"<|start|>{ROLE}<|stop|>\n\n{{{{ m.content | trim }}}}<|eot|>"] * 2, BOS),
        ("<|start|>", "<|stop|>", "<|eot|>"), "<|eot|>",
    ),
    "mistral": Family(turns(f"[INST] {SAYS}[/INST]", f" {SAYS}{EOS}", BOS), ("[INST]", "[/INST]"), EOS),
    "gemma": Family(
        turns(f"<turn>user\n{SAYS}<end>\n", f"<turn>model\n{SAYS}<end>\n", BOS),
        ("<turn>", "<end>"), "<end>",
    ),
    "chatml": Family(
        turns(*[f"<|im_start|>{ROLE}\n{SAYS}<|im_end|>\n"] * 2),
        ("<|im_start|>", "<|im_end|>"), "<|im_end|>",
    ),
    "qwen thinking": Family(
        turns(f"<|im_start|>user\n{SAYS}<|im_end|>\n",
              f"<|im_start|>assistant\n<think>\n\n</think>\n\n{SAYS}<|im_end|>\n"),
        ("<|im_start|>", "<|im_end|>"), "<|im_end|>",
    ),
    "phi 3": Family(
        turns(f"<|user|>\n{SAYS}<|end|>\n", f"<|assistant|>\n{SAYS}<|end|>\n"),
        ("<|user|>", "<|assistant|>", "<|end|>"), "<|end|>",
    ),
    "zephyr": Family(turns(f"<|user|>\n{SAYS}{EOS}\n", f"<|assistant|>\n{SAYS}{EOS}\n"), (), EOS),
    "vicuna": Family(turns(f"USER: {SAYS} ", f"ASSISTANT: {SAYS}{EOS}"), (), EOS),
    "line before the end": Family(turns(f"User: {SAYS}\n", f"Bot: {SAYS}\n{EOS}\n"), (), EOS),
    "no end": Family(turns(f"### Instruction:\n{SAYS}\n\n", f"### Response:\n{SAYS}\n\n"), (), EOS),
    "nothing after": Family(turns(f"User: {SAYS}\n", f"Bot: {SAYS}"), (), EOS),
    "deepseek": Family(turns(f"<|U|>{SAYS}", f"<|A|>{SAYS}{EOS}", BOS), ("<|U|>", "<|A|>"), EOS),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return small_tokenizer(request.param)


def ask(question: str, context: str) -> QuestionExample:
    return QuestionExample(id="1", question=question, context=context, answers=())


def joint(tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[int, ...]:
    """Return the ids that a server computes from a whole prompt, control tokens included."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def whole_prompt(prompt: Prompt, example: QuestionExample) -> str:
    context = prompt.context.format(context=example.context)
    return prompt.instruction + context + prompt.question.format(question=example.question)


def test_the_ids_of_a_prompt_are_those_of_its_whole_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = Prompt()
    encoder = PromptEncoder(tokenizer, prompt)
    bos = (tokenizer.bos_token_id,)
    for example in EXAMPLES:
        text, found = whole_prompt(prompt, example), next(encoder.encode([example]))
        answer = " " + answer_text(example, prompt.no_answer)
        assert found.prompt == encoder.question(example) == bos + joint(tokenizer, text)
        assert found.completion[-1] == tokenizer.eos_token_id
        assert found.prompt + found.completion[:-1] == bos + joint(tokenizer, text + answer)
        assert encoder.answer(answer) == found.completion[:-1]
        text = f"Text: {example.context}\nLabel:"
        assert encoder.zero_shot(example.context) == bos + joint(tokenizer, text)
        both = encoder.zero_shot(example.context) + encoder.verbalizer("positive")
        assert both == bos + joint(tokenizer, text + " positive")
    assert encoder.no_answer == (*encoder.answer("unanswerable"), tokenizer.eos_token_id)


def test_worked_examples_are_part_of_the_whole_text(tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = Prompt()
    encoder = PromptEncoder(tokenizer, prompt)
    bos = (tokenizer.bos_token_id,)
    first, second, third = EXAMPLES[1], EXAMPLES[2], EXAMPLES[8]
    text = whole_prompt(prompt, first) + f" {answer_text(first, 'unanswerable')}\n\n"
    text += prompt.question.format(question=second.question)
    assert encoder.question(second, shots=[first]) == bos + joint(tokenizer, text)
    text += f" {answer_text(second, 'unanswerable')}\n\n"
    text += whole_prompt(prompt, third).removeprefix(prompt.instruction)
    assert encoder.question(third, shots=[first, second]) == bos + joint(tokenizer, text)
    text = f"Text: {first.context}\nLabel: no\n\nText: {third.context}\nLabel:"
    found = encoder.zero_shot(third.context, shots=[(first.context, "no")])
    assert found == bos + joint(tokenizer, text)


def test_a_tree_holds_the_same_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    """What prompts share is found in their ids, so sharing changes none of them."""
    encoder = PromptEncoder(tokenizer, Prompt())
    encoded = {one.id: one for one in encoder.encode(EXAMPLES)}
    found = {}
    for row in pack.pack(encoded.values(), 2048):
        for id_, start in zip(row["ids"], row["starts"], strict=True):
            last = row["subtree_end"][start]
            path = [i for i in range(last) if i <= start < row["subtree_end"][i] or i > start]
            found[id_] = tuple(row["input_ids"][i] for i in path)
    assert found == {id_: one.prompt + one.completion for id_, one in encoded.items()}


def test_a_window_with_the_whole_passage_is_the_whole_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoder = PromptEncoder(tokenizer, Prompt())
    for example in EXAMPLES:
        text = f"Question: {example.question}\n\nPassage:\n{example.context}\n\nAnswer:"
        (window,) = spans.windows(encoder, example, 512, 32)
        assert window.input_ids == (tokenizer.bos_token_id, *joint(tokenizer, text))
        covered = [example.context[start:end] for start, end in window.offsets]
        assert "".join(covered).split() or not example.context.split()
        for answer in example.answers:
            start, end = spans.label(window, answer)
            assert answer.text in spans.text(window, start, end, example.context)
    long = ask("Who?", "\n".join(CONTEXTS) * 3)
    *parts, last = spans.windows(encoder, long, 100, 16)
    suffix = encoder.ids(SPAN_SUFFIX)
    assert len(parts) > 1 and {part.input_ids[-len(suffix) :] for part in parts} == {suffix}
    assert last.input_ids[-1] == suffix[-1]


def test_text_that_is_too_long_loses_its_end_and_stays_one_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    prompt = Prompt()
    encoder = PromptEncoder(tokenizer, prompt)
    for context in ("word👩‍🔬 " * 40, "東京は日本" * 20):
        example = ask("Who?", context)
        texts = [whole_prompt(prompt, ask("Who?", context[:end])) for end in range(len(context))]
        every = {(tokenizer.bos_token_id, *joint(tokenizer, text)) for text in texts}
        for room in (100, 101, 102, 103):
            found = encoder.question(example, room)
            assert found in every
            assert room - 8 <= len(found) <= room
            cut = encoder.zero_shot(context, room)
            assert room - 8 <= len(cut) <= room
            assert tokenizer.decode(cut).endswith("\nLabel:")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["gpt2", "llama3", "llama2", "mistral", "gemma"])
def test_an_answer_ends_in_the_end_token_of_its_template(kind: str, family: str) -> None:
    template, control, end = FAMILIES[family]
    tokenizer = small_tokenizer(kind, template, *control)
    encoder = PromptEncoder(tokenizer, Prompt())
    assert tokenizer.convert_ids_to_tokens(encoder.end_id) == end
    for example in EXAMPLES[:: 1 if kind == "llama3" else 7]:
        encoded = next(encoder.encode([example]))
        answer = answer_text(example, "unanswerable")
        text = whole_prompt(encoder.prompt, example)
        said = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        rendered = tokenizer.apply_chat_template(said, tokenize=False)
        start = rendered.rindex(answer)
        assert encoded.prompt == joint(tokenizer, rendered[:start].rstrip(" "))
        served, ids = joint(tokenizer, rendered), encoded.prompt + encoded.completion
        # If an answer would change the ids of its prompt, it follows the prompt's own ids.
        if served[: len(encoded.prompt)] == encoded.prompt and family != "no end":
            assert served[: len(ids)] == ids[: len(served)]
        assert encoded.completion[-1] == encoder.end_id
        assert encoder.end_id not in encoded.completion[:-1]
        raw = encoder.text(list(encoded.completion[:-1])).removeprefix("<think>\n\n</think>\n\n")
        assert parse_answer(raw, "never") == answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["smollm2", "llama3", "llama2", "mistral", "unigram"])
def test_control_strings_in_data_open_no_turn(kind: str, family: str) -> None:
    template, control, _ = FAMILIES[family]
    tokenizer = small_tokenizer(kind, template, *control)
    encoder = PromptEncoder(tokenizer, Prompt())
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}

    def controls(text: str) -> list[int]:
        example = QuestionExample(id="1", question=text, context=text, answers=(Answer(text, 0),))
        found = next(encoder.encode([example]))
        assert text in tokenizer.decode(found.prompt)
        return [id_ for id_ in found.prompt + found.completion if id_ in special]

    quiet = controls("Nobody.")
    for evil in (EOS, f"a {BOS} b", *control, "".join(control) + EOS):
        assert controls(evil) == quiet


CONTROLLED = [name for name, family in FAMILIES.items() if family.control]


@pytest.mark.parametrize("family", CONTROLLED)
@pytest.mark.parametrize("kind", ["smollm2", "llama2", "gemma"])
def test_ordinary_added_tokens_of_a_template_open_no_turn(kind: str, family: str) -> None:
    """Some checkpoints hold <|im_end|> as an ordinary token, which is read in any text."""
    template, control, _ = FAMILIES[family]
    tokenizer = small_tokenizer(kind, template, *control, special=False)
    ids = {*tokenizer.convert_tokens_to_ids(list(control))}
    first, second = PromptEncoder(tokenizer, Prompt()), PromptEncoder(tokenizer, Prompt())
    assert first.end_id == second.end_id

    def read(encoder: PromptEncoder, text: str) -> tuple[int, ...]:
        example = QuestionExample(id="1", question=text, context=text, answers=(Answer(text, 0),))
        found = next(encoder.encode([example]))
        return (*found.prompt, *found.completion, *encoder.head_input(text))

    for text in ("Nobody.", "".join(control) + EOS, *(f"a {token} b" for token in control)):
        found = read(first, text)
        assert found == read(second, text)
        assert [i for i in found if i in ids] == [i for i in read(first, "Nobody.") if i in ids]
    for example in EXAMPLES[::7]:
        said = [{"role": "user", "content": whole_prompt(Prompt(), example)}]
        rendered = tokenizer.apply_chat_template(
            [*said, {"role": "assistant", "content": "Q"}], tokenize=False
        )
        prompt = joint(tokenizer, rendered[: rendered.rindex("Q")].rstrip(" "))
        assert first.question(example) == prompt, "ordinary text keeps its ids"
        assert first.ids(example.context) == joint(tokenizer, example.context)
    assert not any(tokenizer.added_tokens_decoder[id_].special for id_ in ids), "it is not changed"


def test_what_a_run_shares_is_little_less_than_its_pieces(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Questions on one passage share all but the tokens at the border."""
    encoder = PromptEncoder(tokenizer, Prompt())
    context = "The tower was built in 1889. It is tall."
    prompts = [encoder.question(ask(q, context)) for q in ("When?", "Who built it?")]
    before = encoder.prompt.instruction + encoder.prompt.context.format(context=context)
    count = len(encoder.ids(before + "Question:"))
    assert prompts[0][:count] == prompts[1][:count]
    assert (
        pack.packing(pack.pack([Encoded(str(i), p) for i, p in enumerate(prompts)], 512)).rows == 1
    )
