"""What nnU-Net finds in this folder by name; see ``segfuse nnunet --help``."""

from segfuse.integrations.nnunet import *  # noqa: F403
