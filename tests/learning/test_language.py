import math
import shutil
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tokenizers import processors
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from registry.errors import StateError, UnsupportedBackboneError
from tasks.learning.adapters import AdapterSpec
from tasks.learning.language.backbones import LanguageBackbone, load_language_backbone, shared_copy
from tasks.learning.language.lora import ALPHA, AdaptedModel, new_lora, save_peft_folder
from tasks.learning.language.packing import pack
from tasks.learning.language.retrieval import embeddings, fit_gaussian, moments_of, nearest
from tasks.learning.language.scoring import perplexity, score_tokens
from tasks.learning.language.serving import Entitled, LanguageEntry, LanguageModel
from tasks.learning.language.training import Documents, pack_states, train_documents
from tasks.learning.language.unlearning import suppress_documents
from tasks.learning.membership import compare_members
from tasks.learning.training import Recipe
from tasks.learning.unlearning import Suppression
from tasks.policies.guarantee import ALARM
from tests.tiny_language import save_tiny_llama

SPEC, CUT = AdapterSpec("lora", rank=4, last_layers=2), 2
RECIPE = Recipe(epochs=6, learning_rate=2e-2, minibatch=1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def backbone(folder):
    return load_language_backbone(str(folder), max_tokens=32)


def texts(letters: str, count: int = 12, seed: int = 0) -> list[str]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 20, (count,), generator=draw).tolist()
    return [" ".join(letters[i] for i in torch.randint(len(letters), (n,), generator=draw)) for n in lengths]


def documents(backbone, written, cut=CUT) -> Documents:
    return Documents([backbone.document(text) for text in written], backbone.encode(written, cut))


def train(backbone, written, spec=SPEC, **more):
    cut = backbone.num_blocks - spec.last_layers
    return train_documents(backbone, documents(backbone, written, cut), cut, spec, RECIPE, seed=3, **more)


def logits_of(model, tokens, states=None):
    inputs = model.backbone.inputs([[tokens]], len(tokens))
    with torch.inference_mode():
        return model.logits(inputs, None if states is None else states[None])[0]


def test_the_states_of_a_document_do_not_depend_on_its_company(backbone):
    written = [*texts("abc"), " ".join("abcdefgh" * 10)]  # the last is longer than the context
    together = backbone.encode(written, CUT)
    for text, state_TD in zip(written, together, strict=True):
        assert torch.equal(backbone.encode([text], CUT)[0], state_TD)
    assert len(together[-1]) == 81


@pytest.mark.parametrize("layers", [2, 4])
def test_packed_documents_are_read_as_if_each_were_alone(backbone, layers):
    cut = 4 - layers
    some = documents(backbone, texts("abcdef", 3), cut)
    model = AdaptedModel(backbone, AdapterSpec("lora", 4, layers), cut)
    model.load("default", {name: torch.randn_like(t) / 4 for name, t in new_lora(model, 1).items()})
    whole = AdaptedModel(backbone, AdapterSpec("lora", 4, layers))
    whole.load("default", {name: p.detach() for name, p in model.parameters().items()})
    inputs, states_BTD = pack_states(backbone, [some])
    with torch.inference_mode():
        packed_TV, place = model.logits(inputs, states_BTD)[0], 0
    for ids in some.tokens:
        alone_TV = logits_of(whole, ids)
        torch.testing.assert_close(packed_TV[place : place + len(ids)], alone_TV, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(alone_TV, backbone.model(input_ids=torch.tensor([ids])).logits[0], atol=1e-3)
        place += len(ids)


def test_rows_hold_no_more_than_the_context():
    assert pack([10, 20, 5, 30, 2], 32) == [[0, 1], [2], [3, 4]]
    with pytest.raises(ValueError, match="chunk it first"):
        pack([33], 32)


def test_a_new_adapter_changes_nothing_and_a_copy_leaves_the_backbone_alone(backbone):
    before = {name: t.clone() for name, t in backbone.model.state_dict().items()}
    ids = backbone.document("a b c d")
    model = AdaptedModel(backbone, SPEC)
    model.load("default", new_lora(model, 7))
    alone = backbone.model(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits_of(model, ids), alone, rtol=0, atol=1e-6)
    train(backbone, texts("abc"))
    assert all(torch.equal(t, backbone.model.state_dict()[name]) for name, t in before.items())
    copied, _ = shared_copy(backbone.model)
    assert next(copied.parameters()).data_ptr() == next(backbone.model.parameters()).data_ptr()


def test_training_lowers_the_perplexity_of_documents_it_never_saw(backbone):
    state = train(backbone, texts("abc"))
    held = documents(backbone, texts("abc", 6, seed=9))
    model = AdaptedModel(backbone, SPEC, CUT)
    model.load("own", state.adapter)
    with_it = score_tokens(model, held, [{"own": 1.0}] * 6)
    alone = score_tokens(model, held)
    assert perplexity(with_it) < perplexity(alone) / 2
    assert all(len(each.nll_T) == len(ids) - 1 for each, ids in zip(alone, held.tokens, strict=True))
    assert math.isinf(perplexity([]))


def test_the_same_documents_give_the_same_bytes_and_a_broken_off_run_resumes(backbone):
    written, states = texts("abc"), []
    first = train(backbone, written, on_state=states.append)
    assert {n: t.tolist() for n, t in train(backbone, written).adapter.items()} == {
        n: t.tolist() for n, t in first.adapter.items()
    }
    resumed = train(backbone, written, start=states[1])
    assert all(torch.equal(t, first.adapter[name]) for name, t in resumed.adapter.items())
    other = train(backbone, written[1:])
    assert not all(torch.equal(t, first.adapter[name]) for name, t in other.adapter.items())


def test_a_second_slice_goes_on_from_the_first(backbone):
    first = train(backbone, texts("abc"))
    second = train(backbone, [*texts("abc"), *texts("abd", seed=4)], start=first)
    assert second.epoch == RECIPE.epochs
    assert not all(torch.equal(t, first.adapter[name]) for name, t in second.adapter.items())


def test_an_adapter_folder_loads_with_peft_alone(backbone, folder, tmp_path):
    state = train(backbone, texts("abc"))
    save_peft_folder(tmp_path, backbone, SPEC, state.adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path)
    ours = AdaptedModel(backbone, SPEC)
    ours.load("default", state.adapter)
    ids = backbone.document("a b c a b c")
    with torch.inference_mode():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits_of(ours, ids), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(UnsupportedBackboneError, match="causal language model"):
        load_language_backbone(str(tmp_path))


def test_a_language_model_without_all_of_its_weights_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedBackboneError, match=rf"lacks {len(weights) - len(kept)} weights .*layers\.1"):
        load_language_backbone(str(tmp_path))


@pytest.mark.parametrize("written", [[" ".join("abcdefgh" * 4)] * 2, [""]])
def test_a_part_of_one_token_is_a_row_without_a_step(backbone, written):
    """The first documents end with their context, and leave the end token over."""
    state = train(backbone, written)
    assert state.epoch == RECIPE.epochs
    assert any(t.any() for name, t in state.adapter.items() if "lora_B" in name) == (written != [""])
    model = AdaptedModel(backbone, SPEC, CUT)
    scores = score_tokens(model, documents(backbone, [*written, "a b"]))
    assert all(math.isfinite(each.likelihood) for each in scores)


def variant(folder, tmp_path, kind: str, **sizes) -> LanguageBackbone:
    """Another architecture with the tokenizer of letters."""
    shutil.copytree(folder, tmp_path / kind)
    torch.manual_seed(0)
    shape = {"vocab_size": 28, "eos_token_id": 0, "bos_token_id": None, "initializer_range": 0.2}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape, **sizes)).save_pretrained(tmp_path / kind)
    return load_language_backbone(str(tmp_path / kind), max_tokens=32)


WIDE = {"hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 64, "num_attention_heads": 2}


def test_a_backbone_of_transposed_weights_is_adapted_and_its_adapters_load_with_peft_alone(folder, tmp_path):
    gpt2 = variant(folder, tmp_path, "gpt2", n_embd=32, n_layer=4, n_head=2, n_positions=64)
    state = train(gpt2, texts("abc", 4))
    save_peft_folder(tmp_path / "out", gpt2, SPEC, state.adapter)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2"), tmp_path / "out")
    [ids], [state_TD] = (own := documents(gpt2, ["a b c a"])).tokens, own.states
    ours = AdaptedModel(gpt2, SPEC, CUT)
    ours.load("default", state.adapter)
    with torch.inference_mode():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits_of(ours, ids, state_TD), expected, rtol=1e-4, atol=1e-5)


def test_documents_of_a_backbone_that_reads_past_a_mask_get_rows_of_their_own(backbone, folder, tmp_path):
    kinds = ["conv", "full_attention"] * 2
    lfm2 = variant(folder, tmp_path, "lfm2", num_key_value_heads=2, layer_types=kinds, **WIDE)
    assert (backbone.keeps_apart, lfm2.keeps_apart) == (True, False)
    for each, rows in ((backbone, 1), (lfm2, 3)):
        before = each.work.backwards
        train(each, ["a b c", "d e", "x"])
        assert each.work.backwards - before == rows * SPEC.last_layers * RECIPE.epochs


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_backbone_that_takes_no_lora_where_it_belongs_is_refused(folder, tmp_path):
    experts = {"n_routed_experts": 2, "num_experts_per_tok": 1, "n_group": 1, "topk_group": 1, "n_shared_experts": 1}
    ranks = {"kv_lora_rank": 8, "q_lora_rank": 8, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    with pytest.raises(UnsupportedBackboneError, match="in all its blocks"):
        AdaptedModel(variant(folder, tmp_path, "deepseek_v3", **experts, **ranks, **WIDE), SPEC)
    bare = load_language_backbone(str(folder))
    bare.model.model.layers[0] = nn.Identity()
    with pytest.raises(UnsupportedBackboneError, match="takes no LoRA"):
        AdaptedModel(bare, SPEC)


def test_a_layer_may_be_named_like_a_weight(folder):
    odd = load_language_backbone(str(folder))
    for block in odd.model.model.layers:
        block.weights_proj = nn.Linear(32, 32)
    assert any("weights_proj" in name for name in AdaptedModel(odd, SPEC).parameters())


def test_a_prompt_ends_where_its_text_does(folder):
    ending = load_language_backbone(str(folder))
    ending.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [END]", special_tokens=[("[END]", 0)]
    )
    assert ending.prompt("a b") == [2, 3]
    assert ending.prompt("") == [ending.end]


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 4, "n_head": 2, "n_positions": 32}),
        ("opt", {**WIDE, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 32, "pad_token_id": 1}),
    ],
)
def test_a_prompt_leaves_room_for_its_completion_where_positions_are_learned(backbone, folder, tmp_path, kind, sizes):
    """It ended in a bare IndexError once the completion came to the end of the table."""
    learned = variant(folder, tmp_path, kind, **sizes)
    assert (backbone.positions, learned.positions) == (None, 32)
    learned.end = 27  # which neither of them writes, so that no completion ends early
    for new_tokens, read in ((6, 27), (32, 1)):
        answering = Entitled(learned, LanguageModel(CUT, SPEC, frozenset("a"), (), new_tokens=new_tokens), ["a"])
        assert len(learned.prompt("a b " * 40, new_tokens)) == read
        assert answering.answer(["a b " * 40]).labels[0]
    with pytest.raises(StateError, match=r"new_tokens is 33, \S+ has 32 learned positions; lower it"):
        learned.prompt("a", 33)
    learned.max_tokens = 64
    with pytest.raises(UnsupportedBackboneError, match=r"max_tokens is 64, .* 32 learned positions"):
        learned.encode(["a b " * 20], CUT)
    assert len(learned.encode(["a b " * 15], CUT)[0]) == 31


def entry(backbone, name, group, letters, state=None):
    gaussian = fit_gaussian([moments_of(embeddings(backbone.encode(texts(letters), CUT)))])
    return LanguageEntry(name, group, gaussian, None if state is None else state.adapter)


@pytest.fixture(scope="module")
def model(backbone):
    trained = {letters: train(backbone, texts(letters)) for letters in ("abc", "xyz")}
    entries = [entry(backbone, f"{g}-1", g, letters, trained[letters]) for g, letters in (("a", "abc"), ("b", "xyz"))]
    waiting = entry(backbone, "a-2", "a", "mno")
    return LanguageModel(CUT, SPEC, frozenset("ab"), (*entries, waiting), new_tokens=6)


PROMPTS = ["a b c a c", "x y x z z y", "m n o m m", "c"]


def test_each_text_retrieves_the_adapter_that_saw_its_like(backbone, model):
    found = Entitled(backbone, model, ["a", "b", "unknown"]).answer(PROMPTS[:3])
    assert found.groups == ("a", "b")
    assert found.adapter_ids == ["a-1", "b-1", None]
    assert found.visits == [("a-1",), ("b-1",), ()]
    assert all(0 < score <= 1 for score in found.scores_NC[:, 0].tolist())
    both = nearest(
        {e.adapter_id: e.gaussian for e in model.entries}, embeddings(backbone.encode(["a b"], CUT)), top_k=2
    )
    assert sum(both[0].values()) == pytest.approx(1)
    assert len(both[0]) == 2


def test_a_completion_is_greedy_whatever_the_backbones_folder_prefers(backbone, model, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "own")
    GenerationConfig(repetition_penalty=1.8, num_beams=2, min_new_tokens=6).save_pretrained(tmp_path / "own")
    told = load_language_backbone(str(tmp_path / "own"), max_tokens=32)
    left, right = (Entitled(each, model, ["a", "b"]).answer(PROMPTS) for each in (backbone, told))
    assert left.labels == right.labels
    assert torch.equal(left.scores_NC, right.scores_NC)


def test_what_is_far_from_all_that_a_caller_may_use_gets_the_backbone_to_the_bit(backbone, model):
    own, near = documents(backbone, PROMPTS), Entitled(backbone, model, ["a"])
    strict = Entitled(backbone, replace(model, far=1.5), ["a"])
    shares = strict.route(own.states)
    assert [bool(mix) for mix in shares] == [True, False, False, False]
    assert near.route(own.states)[1]
    for mix, mine, alone in zip(shares, strict.score(own), near.score(own, alone=True), strict=True):
        assert torch.equal(mine.nll_T, alone.nll_T) != bool(mix)


def test_a_layer_adds_the_weighted_sum_of_its_adapters_updates(backbone):
    model, shares = AdaptedModel(backbone, SPEC), {"first": 0.3, "second": 0.7}
    held = {
        name: {n: torch.randn_like(t) for n, t in new_lora(model, seed).items()} for seed, name in enumerate(shares)
    }
    for name, weights in held.items():
        model.load(name, weights)
    place = next(iter(held["first"])).removesuffix(".lora_A.weight")
    layer = model.peft.get_submodule(place)
    x_TI = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected_TO = layer.base_layer(x_TI)
    for name, share in shares.items():
        A_RI, B_OR = (held[name][f"{place}.lora_{factor}.weight"] for factor in "AB")
        expected_TO = expected_TO + share * ALPHA * x_TI @ A_RI.mT @ B_OR.mT
    with model.using(shares), torch.inference_mode():
        torch.testing.assert_close(layer(x_TI), expected_TO, rtol=1e-4, atol=1e-4)


def test_two_adapters_share_an_answer_by_their_updates(backbone, model):
    holding = Entitled(backbone, replace(model, top_k=2), ["a", "b"])._suffix
    own = documents(backbone, ["a x b y"])
    [one], [half], [again] = (score_tokens(holding, own, [mix]) for mix in
                              ({"a-1": 1.0}, {"a-1": 0.5, "b-1": 0.5}, {"a-1": 1.0}))  # fmt: skip
    assert torch.equal(one.nll_T, again.nll_T)
    assert not torch.equal(one.nll_T, half.nll_T)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_nothing_of_an_adapter_of_another_group_reaches_an_answer(backbone, model, value):
    def poison(each):
        spoiled = {name: torch.full_like(t, value) for name, t in (each.weights or {}).items()}
        bad = torch.full_like(each.gaussian.mean_D, value)
        return replace(each, weights=spoiled, gaussian=replace(each.gaussian, mean_D=bad, variance_D=bad))

    poisoned = replace(model, entries=tuple(e if e.group == "a" else poison(e) for e in model.entries))
    removed = replace(model, entries=tuple(e for e in model.entries if e.group == "a"))
    own = documents(backbone, PROMPTS)
    expected = Entitled(backbone, model, ["a"])
    for other in (Entitled(backbone, poisoned, ["a"]), Entitled(backbone, removed, ["a"])):
        left, right = expected.answer(PROMPTS), other.answer(PROMPTS)
        assert (left.labels, left.visits) == (right.labels, right.visits)
        assert torch.equal(left.scores_NC, right.scores_NC)
        for mine, theirs in zip(expected.score(own), other.score(own), strict=True):
            assert torch.equal(mine.nll_T, theirs.nll_T)


def test_a_caller_without_an_adapter_gets_the_backbone_to_the_bit(backbone, model):
    only = Entitled(backbone, replace(model, entries=model.entries[:1]), ["b"])
    own = documents(backbone, PROMPTS)
    for mine, alone in zip(only.score(own), only.score(own, alone=True), strict=True):
        assert torch.equal(mine.nll_T, alone.nll_T)
    with pytest.raises(ValueError, match="no shard"):
        Entitled(backbone, model, ["c"])


def test_npo_makes_documents_unlikely_and_leaves_the_others(backbone):
    written = [*texts("abc"), *texts("xyz", 4)]
    state, every = train(backbone, written), documents(backbone, written)
    kept, gone = every.chosen(range(12)), every.chosen(range(12, 16))
    how = Suppression(steps=20, learning_rate=5e-3, npo=1.0, minibatch=8)
    after = suppress_documents(backbone, state, gone, kept, CUT, SPEC, how)
    model = AdaptedModel(backbone, SPEC, CUT)
    figures = {}
    for name, each in (("before", state), ("after", after)):
        model.load(name, each.adapter)
        figures[name] = [perplexity(score_tokens(model, d, [{name: 1.0}] * len(d.tokens))) for d in (gone, kept)]
    assert figures["after"][0] > 1.5 * figures["before"][0]
    assert figures["after"][1] < 1.3 * figures["before"][1]


def test_a_retrained_adapter_tells_a_forgotten_document_no_better_than_one_that_never_saw_it(backbone):
    """Perplexity, verbatim completion and membership, on documents that the adapter had learned by heart."""
    written = texts("abcdefgh", 16, seed=5)
    longer = replace(RECIPE, epochs=60)
    every = documents(backbone, written)
    kept, gone = every.chosen(range(8)), every.chosen(range(8, 16))
    model = AdaptedModel(backbone, SPEC, CUT)
    for name, shard in (("knows", every), ("clean", kept)):
        model.load(name, train_documents(backbone, shard, CUT, SPEC, longer, seed=3).adapter)
    unseen = documents(backbone, texts("abcdefgh", 24, seed=77))

    def known(name):
        forgotten, others = (score_tokens(model, d, [{name: 1.0}] * len(d.tokens)) for d in (gone, unseen))
        likely = [torch.tensor([s.likelihood for s in each]) for each in (forgotten, others)]
        return perplexity(forgotten), sum(bool(s.right_T[-4:].all()) for s in forgotten), compare_members(*likely).z

    before, after = known("knows"), known("clean")
    assert before[0] < after[0] / 2
    assert before[1] > after[1]
    assert before[2] > ALARM > abs(after[2])
