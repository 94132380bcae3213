"""Tiny captioning models with random weights, saved as transformers saves the real ones."""

import numpy as np

WORDS = "a the red green blue ball cat dog runs walks sits on grass road sky then it turns left right and stops"
COLORS = "pink gray black white far near tree house"
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
SIDE, PATCH = 16, 8

CHAT = (
    "<bos>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% elif part['type'] == 'video' %}VIDEO"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def make_tokenizer(*more):
    """A tokenizer of whole words, none of which ends a sentence; `more` are special tokens, with ids from 4 on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [*SPECIAL, *more]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS.split(), *COLORS.split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    names = {f"{token[1:-1]}_token": token for token in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_image_processor():
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


def randomise(model, seed=0, scale=1.0):
    """Weights that let what comes out depend on what goes in, which those of a new model hardly do."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
            if parameter.ndim > 1:
                spread = scale / np.sqrt(parameter[0].numel())
                parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def text_sizes(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def vision_sizes():
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    }


def make_llava():
    """LLaVA: a chat template that takes images."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = make_tokenizer("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision_sizes()),
        text_config=LlamaConfig(**text_sizes(tokenizer), num_key_value_heads=2),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    processor = LlavaProcessor(
        image_processor=make_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT.replace("VIDEO", ""),
    )
    return LlavaForConditionalGeneration(config), processor


def make_git(frames=1):
    """GIT: no chat template; sees as many frames as it has embeddings of, or one image."""
    from transformers import GitConfig, GitForCausalLM, GitProcessor

    tokenizer = make_tokenizer()
    config = GitConfig(
        vision_config=vision_sizes(),
        **text_sizes(tokenizer),
        num_image_with_embedding=frames if frames > 1 else None,
    )
    return GitForCausalLM(config), GitProcessor(make_image_processor(), tokenizer)


def make_blip():
    """BLIP: no chat template, one image."""
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessorPil,
        BlipProcessor,
    )

    tokenizer = make_tokenizer()
    text = text_sizes(tokenizer) | {
        "sep_token_id": tokenizer.eos_token_id,
        "encoder_hidden_size": 32,
    }
    config = BlipConfig(text_config=text, vision_config=vision_sizes())
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return BlipForConditionalGeneration(config), BlipProcessor(images, tokenizer)


def make_smolvlm():
    """SmolVLM2: a chat template and a video processor, which writes the times of the frames. Needs torchvision."""
    from transformers import (
        LlamaConfig,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    more = ("<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = make_tokenizer(*more, "<|im_start|>")
    config = SmolVLMConfig(
        vision_config=vision_sizes(),
        text_config=LlamaConfig(**text_sizes(tokenizer), num_key_value_heads=2),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    sides = {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sides, do_image_splitting=False),
        tokenizer,
        SmolVLMVideoProcessor(**sides),
        image_seq_len=(SIDE // PATCH) ** 2,
        chat_template=CHAT.replace("VIDEO", "<video>").replace("<bos>", "<|im_start|>"),
    )
    return SmolVLMForConditionalGeneration(config), processor


def make_qwen():
    """Qwen2.5-VL: a chat template and a video processor; patches of every size. Needs torchvision."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = make_tokenizer(*marks)
    ids = [tokenizer.convert_tokens_to_ids(mark) for mark in marks]
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": PATCH,
    }
    vision |= {"out_hidden_size": 32, "window_size": 32, "fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        text_config=text_sizes(tokenizer) | {"num_key_value_heads": 2, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=ids[0],
        video_token_id=ids[1],
        vision_start_token_id=ids[2],
        vision_end_token_id=ids[3],
    )
    sizes = {"patch_size": PATCH, "size": {"shortest_edge": 256, "longest_edge": 1024}}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**sizes),
        tokenizer,
        Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT.replace("VIDEO", f"{marks[2]}{marks[1]}{marks[3]}").replace(
            "<image>", f"{marks[2]}{marks[0]}{marks[3]}"
        ),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


def save(folder, model, processor, seed=0, scale=1.0):
    """Saves a model with random weights and its processor; returns the folder."""
    model = randomise(model, seed, scale)
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
