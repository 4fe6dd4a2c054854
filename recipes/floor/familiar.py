"""What recipes call settings that transformers, PEFT, TRL and others name differently."""

from __future__ import annotations

from typing import Final

_HERE: Final = {
    "base": "model model_id model_name model_name_or_path base_model pretrained_model_name_or_path",
    "data.files": "files train_file train_files data_files data_path dataset_path",
    "data.hub": "dataset dataset_id dataset_name",
    "data.subset": "dataset_config dataset_config_name subset",
    "data.split": "dataset_split dataset_train_split",
    "data.held_out": "held_out eval_split test_size val_set_size validation_split",
    "tokens": "cutoff_len max_length max_seq_len max_seq_length model_max_length seq_length sequence_len",
    "packing": "pack sample_packing",
    "objective": "loss loss_type",
    "training.lr": "lr learning_rate",
    "training.epochs": "epochs max_epochs num_epochs num_train_epochs",
    "training.batch": "batch batch_size micro_batch_size per_device_train_batch_size train_batch_size",
    "training.accumulate": "accumulate gradient_accumulation gradient_accumulation_steps",
    "training.schedule": "schedule lr_scheduler lr_scheduler_type scheduler",
    "training.warmup": "warmup warmup_ratio warmup_steps",
    "training.clip": "clip gradient_clipping max_grad_norm",
    "training.weight_decay": "decay weight_decay",
    "training.seed": "random_seed seed",
    "training.precision": "bf16 dtype fp16 mixed_precision precision",
    "training.save_dtype": "save_dtype torch_dtype",
    "training.freeze": "freeze frozen modules_to_freeze",
    "training.checkpoint_every": "checkpoint_every save_steps",
    "training.arguments.gradient_checkpointing": "gradient_checkpointing",
    "training.update": "adapter lora peft peft_config update use_lora use_peft",
    "training.update.rank": "lora_r lora_rank r rank",
    "training.update.alpha": "alpha lora_alpha",
    "training.update.dropout": "dropout lora_dropout",
    "training.update.targets": "lora_target_modules target_modules targets",
}
_BY_NAME: Final = {name: here for here, names in _HERE.items() for name in names.split()}


def familiar(name: str) -> str | None:
    """The recipe setting for another tool's key, or ``None``.

    >>> familiar("learning_rate")
    'training.lr'
    """
    return _BY_NAME.get(name)
