"""How anything is trained: settings, the model, the one trainer, unfinished runs.

Two kinds of routine share this floor. Where a loss is a function of the model and some rows, be they single rows or
pairs, it is an objective, and ``trainer.fit`` runs it: a preference objective pads both answers of a pair into one
batch, says how long a pair is, and takes its frozen reference in ``ready``. Where rows are made while the model trains,
or a second model trains beside it (GRPO, PPO, reward models with a head of their own), the routine stands on TRL, which
the ``train`` extra installs: it reads its rows by ``data/``, makes the model ready by ``model.prepare``, gives TRL's
config of the method what ``trainer.arguments`` gives transformers', and runs TRL's trainer in the folder of an
``unfinished.Unfinished``, so that an interrupted run resumes, and what is written is rounded and moved into place as
ours is. TRL is imported by that routine alone.
"""
