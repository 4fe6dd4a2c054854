"""How anything is trained: settings, the model, the trainer, unfinished runs.

Two kinds of routine use this package:

* The loss is a function of the model and some rows (single rows or pairs). Then it is an objective, and
  ``trainer.fit`` runs it. A preference objective, for instance, pads both answers of a pair into one batch, gives the
  length of a pair, and takes its frozen reference in ``ready``.
* Rows are generated during training, or a second model trains too (GRPO, PPO, reward models with their own head). Then
  the routine uses TRL, which the ``train`` extra installs. It reads its rows by ``data/``, prepares the model by
  ``model.prepare``, passes the settings to TRL's config as ``trainer.arguments`` does to transformers', and runs TRL's
  trainer in the folder of an ``unfinished.Unfinished``, so that runs resume and outputs are written as for the others.
  Only that routine imports TRL.
"""
