"""What a start needs of this machine: looked for by `sgg-rl doctor`, and by each start itself."""
