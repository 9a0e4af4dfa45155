"""The policy's weights on their way from the trainer to the rollout servers, both ends of it.

`publishing` begins a version and gives it to every server; `updater` decides what a server
serves. A transport is one file with both ends: `transports.shm`, `disk`, `http`, `lora`, `nccl`,
`ipc`.
"""
