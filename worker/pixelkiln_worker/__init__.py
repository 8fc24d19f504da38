"""The worker: the only place that knows torch. Claims batches, runs models, stores what they make."""
