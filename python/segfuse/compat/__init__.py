"""Other libraries' losses under their own names, values and quirks, computed here.

``from segfuse.compat.monai import DiceCELoss`` takes the place of ``from monai.losses import DiceCELoss``: constructor,
``forward``, attributes, ``state_dict`` and numbers are those of MONAI, which need not be installed. Likewise
``compat.smp``, ``kornia``, ``torchvision``, ``torch``, ``nnunet``, ``lovasz`` (the original repository), ``scipy`` and
``edt``. :func:`segfuse.patch` does it for code that cannot be changed.

What differs from a peer is listed in the README: where the peer raises, or returns NaN or inf, this need not; and half
logits give a float32 loss.
"""
