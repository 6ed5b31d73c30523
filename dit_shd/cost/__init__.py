"""What a training run takes, before it is run: operations and memory by count, and one real step.

operations.py counts one step part by part, memory.py what is held, both on the meta device, where tensors have shapes
and no memory (weightless.py); measurement.py takes a real step; estimate.py makes GPU-hours of it; dry_run.py tells.
"""
