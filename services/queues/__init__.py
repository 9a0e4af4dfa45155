"""The work queue: at-least-once delivery with leases, exactly one outcome per item."""
