"""The hot path of training: the same quantities as ``rlhf.ops``, without (tokens × vocabulary) in memory."""
