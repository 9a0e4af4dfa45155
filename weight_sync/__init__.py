"""The policy's weights on their way from the trainer to the rollout servers, both ends of it.

`publisher` begins a version and `sender` is the trainer's end; `updater` decides what a server
serves and `receiver` is the server's end. Each transport is one file with both: `shm`, `disk`,
`http`, `lora`, `nccl`, `ipc`.
"""
