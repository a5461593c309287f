import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache, GenerationConfig

from modeling_mf2 import MF2ForCaptioning, MF2ForPreTraining
from modeling_mf2.modeling_mf2 import CACHE_NAME


START, END, PAD = 5, 3, 0
BRANCHES = ["emo", "au"]


@pytest.fixture
def model(make_config, shaken):
    torch.manual_seed(0)
    return shaken(MF2ForCaptioning(make_config(emotion_max_length=10))).eval()


@pytest.fixture
def images(model, make_batch):
    batch = make_batch(model.config, 2)
    return {name: batch[name] for name in ("pixel_values", "landmarks")}


def lead(branch):
    return (2,) if branch == "emo" else (2, 3)


WAYS = {
    "greedy": {},
    "beam": {"num_beams": 3},
    "beams returned": {"num_beams": 3, "num_return_sequences": 2},
    "sampled": {"do_sample": True, "temperature": 1.5, "top_k": 0},
}


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("way", WAYS)
def test_the_cache_changes_no_token(model, images, branch, way):
    written = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        written.append(model.generate(**images, branch=branch, use_cache=use_cache, max_length=10, **WAYS[way]))
    assert torch.equal(*written)
    several = (2,) if way == "beams returned" else ()
    expected = (2 * 2,) if branch == "emo" and several else (*lead(branch), *several)
    assert written[0].shape[:-1] == expected and 2 <= written[0].shape[-1] <= 10
    tokens = written[0].flatten(0, -2)
    assert (tokens[:, 0] == START).all()
    if branch == "au":  # regions differ, and so do their sentences
        assert len({tuple(row) for row in tokens.tolist()}) > 1
    if way == "sampled":
        torch.manual_seed(4)
        assert not torch.equal(
            tokens, model.generate(**images, branch=branch, max_length=10, **WAYS[way]).flatten(0, -2)
        )


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_taken_by_its_new_and_its_old_name(model, images, name):
    """transformers 5.24 renamed it; checkpoints and their users are on both sides."""
    whole = model.generate(**images, max_length=10)
    start, query_key_values = whole[:, :2], model.see(**images)
    full = model(whole, query_key_values=query_key_values).logits
    cache = DynamicCache()
    model(start, query_key_values=query_key_values, **{name: cache})
    rest = model(whole[:, 2:], query_key_values=query_key_values, **{name: cache})
    assert torch.allclose(rest.logits, full[:, 2:], atol=1e-5)
    assert rest[CACHE_NAME] is cache and cache.get_seq_length() == whole.shape[1]
    mine = DynamicCache()
    assert torch.equal(model.generate(**images, max_length=10, **{name: mine}), whole)
    assert mine.get_seq_length() == whole.shape[1] - 1


@pytest.mark.parametrize("branch", BRANCHES)
def test_greedy_takes_the_likeliest_token_of_a_full_pass(model, images, branch):
    written = model.generate(**images, branch=branch).flatten(0, -2)
    logits = model(written, **images, branch=branch).logits
    for row, tokens in enumerate(written.tolist()):
        for place, token in enumerate(tokens[1:]):
            assert logits[row, place].argmax().item() == token
            if token == END:
                break


def test_images_are_rows_of_their_own(model, images):
    for branch in BRANCHES:
        together = model.generate(**images, branch=branch, max_length=8)
        for row in range(2):
            alone = model.generate(**{k: v[row : row + 1] for k, v in images.items()}, branch=branch, max_length=8)
            length = alone.shape[-1]
            assert torch.equal(alone[0], together[row][..., :length])
            assert (together[row][..., length:] == PAD).all()


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("way", ["greedy", "beam"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_prompt_is_continued(model, images, branch, way, masked):
    prompt = torch.tensor([[START, 11, 12, 13]])
    given = {"attention_mask": torch.ones_like(prompt)} if masked else {}
    written = []
    for use_cache in (True, False):
        written.append(
            model.generate(**images, branch=branch, input_ids=prompt, use_cache=use_cache, **given, **WAYS[way])
        )
    assert torch.equal(*written)
    assert written[0].shape[:-1] == lead(branch) and written[0].shape[-1] > 4
    assert (written[0].flatten(0, -2)[:, :4] == prompt).all()
    rows = prompt.expand(lead(branch)[0] * (3 if branch == "au" else 1), -1)
    assert torch.equal(model.generate(**images, branch=branch, input_ids=rows, **WAYS[way]), written[0])


def test_a_masked_word_of_a_prompt_is_not_read(model, images):
    mask = torch.tensor([[0, 1, 1]])
    written = [
        model.generate(**images, branch="au", input_ids=torch.tensor([[word, START, 11]]), attention_mask=mask)
        for word in (9, 20)
    ]
    assert torch.equal(written[0][..., 1:], written[1][..., 1:])


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_caption_ends_where_it_ends(model, images, branch):
    with torch.no_grad():
        model.mf2.branch(branch).heads.language.bias[END] = 1e4
    written = model.generate(**images, branch=branch)
    assert written.flatten(0, -2).tolist() == [[START, END]] * written.flatten(0, -2).shape[0]
    with torch.no_grad():
        model.mf2.branch(branch).heads.language.bias[END] = -1e4
    longest = {"emo": model.config.emotion_max_length, "au": model.config.au_max_length}[branch]
    assert model.generate(**images, branch=branch).shape[-1] == longest
    assert model.generate(**images, branch=branch, max_new_tokens=4).shape[-1] == 5
    assert model.generate(**images, branch=branch, max_length=6).shape[-1] == 6


def test_generation_follows_the_configuration(model, make_config, tmp_path, images):
    """Also from a checkpoint that another class has saved, and that says nothing of generation."""
    assert isinstance(model.generation_config, GenerationConfig)
    model.save_pretrained(tmp_path / "own")
    pretrained = MF2ForPreTraining(model.config)
    pretrained.mf2 = model.mf2
    pretrained.save_pretrained(tmp_path / "other")
    config, prompt = model.config, torch.tensor([[START, 7]])
    for folder in ("own", "other"):
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / folder).eval()
        assert type(again) is MF2ForCaptioning
        for branch in BRANCHES:
            assert torch.equal(again.generate(**images, branch=branch), model.generate(**images, branch=branch))
        assert again.generate(**images).shape[1] <= config.emotion_max_length
        # A prompt asks for another kind of caption, which may be longer.
        longest = again.generate(**images, input_ids=prompt, min_length=config.emotion_max_length + 2)
        assert config.emotion_max_length < longest.shape[1] <= config.au_max_length
    with pytest.raises(ValueError, match="input_ids: got 5 rows, expected 1 for all, or 2"):
        model.generate(**images, input_ids=prompt.expand(5, -1))


def test_stored_image_tokens_stand_for_the_image(model, images):
    tokens = model.mf2.vision(images["pixel_values"])
    for branch in BRANCHES:
        stored = model.generate(image_tokens=tokens, landmarks=images["landmarks"], branch=branch)
        assert torch.equal(stored, model.generate(**images, branch=branch))
        seen = model.see(**images, branch=branch)
        assert seen.shape == ((2 if branch == "emo" else 6), 3, 2, 4, (3 if branch == "emo" else 2), 8)
        ids = torch.tensor([[START, 8, 9]]).expand(len(seen), -1)
        assert torch.equal(
            model(ids, query_key_values=seen, branch=branch).logits, model(ids, **images, branch=branch).logits
        )


def test_details_on_request(model, images):
    read = model.generate(**images, return_dict_in_generate=True, output_scores=True, max_new_tokens=3)
    assert torch.equal(read.sequences, model.generate(**images, max_new_tokens=3))
    assert len(read.scores) == read.sequences.shape[1] - 1 and read.scores[0].shape == (2, 40)


def test_a_missing_branch_is_named(make_config, make_batch):
    model = MF2ForCaptioning(make_config(use_au_branch=False)).eval()
    batch = make_batch(model.config, 1)
    assert model.generate(batch["pixel_values"], max_length=4).shape[0] == 1
    with pytest.raises(ValueError, match=r"branch: got 'au', expected one of \['emo'\]"):
        model.generate(batch["pixel_values"], branch="au")
    with pytest.raises(ValueError, match="expected one of the two, got neither"):
        model.generate()


def test_loss_equals_that_of_pretraining(model, make_batch):
    other = MF2ForPreTraining(model.config).eval()
    other.mf2.load_state_dict(model.mf2.state_dict())
    batch = make_batch(model.config)
    expected = other(**batch)
    images = {name: batch[name] for name in ("pixel_values", "landmarks")}
    for branch, prefix, loss in (("emo", "", "itg_emo"), ("emo", "key_au_", "itg_key_au"), ("au", "au_", "itg_au")):
        ids, mask = (batch[prefix + name].flatten(0, -2).clone() for name in ("input_ids", "attention_mask"))
        ids[:, 0] = START
        labels = torch.where(mask.bool(), ids, -100)
        read = model(ids, mask, **images, branch=branch, labels=labels)
        assert read.loss.item() == pytest.approx(expected[loss].item(), abs=1e-5), loss
        assert read.logits.shape == (*ids.shape, 40)


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_caption_learned_by_heart_is_written(make_config, make_batch, branch):
    torch.manual_seed(0)
    model = MF2ForCaptioning(make_config(initializer_range=0.02)).train()
    batch = make_batch(model.config, 1)
    images = {name: batch[name] for name in ("pixel_values", "landmarks")}
    captions = [[START, 20, 21, 20, 22, END], [START, 30, 31, END, PAD, PAD], [START, 12, 13, 14, END, PAD]]
    captions = torch.tensor(captions[: 1 if branch == "emo" else 3])  # the AUs of one face have a sentence each
    labels = captions.masked_fill(captions == PAD, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(captions, (labels != -100).long(), **images, branch=branch, labels=labels).loss.backward()
        optimizer.step()
    written = model.eval().generate(**images, branch=branch, max_length=8)
    assert torch.equal(written.flatten(0, -2), captions)
    beams = model.generate(**images, branch=branch, max_length=8, num_beams=3).flatten(0, -2)
    assert torch.equal(beams[labels != -100], captions[labels != -100])
