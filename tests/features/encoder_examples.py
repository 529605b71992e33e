"""Tiny text encoders with weights of chance, saved as people save theirs."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

_SENTENCE = "the cat sat on a mat dog ran far away and slept film war team won election bank"
WORDS = tuple(_SENTENCE.split())


def save_encoder(
    folder: Path, *, dimensions: int = 24, positions: int = 32, roberta: bool = False, seed: int = 0
) -> Path:
    """Save an encoder of transformers: config.json, tokenizer and model.safetensors."""
    import torch

    torch.manual_seed(seed)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    config, kind = (RobertaConfig, RobertaModel) if roberta else (BertConfig, BertModel)
    kind(
        config(
            vocab_size=len(words), hidden_size=dimensions, num_hidden_layers=2,
            num_attention_heads=2, intermediate_size=32, max_position_embeddings=positions,
            pad_token_id=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder
