"""Fine-tuning: packing, loss, optimizer, the compiled step, and the steps of one training."""
