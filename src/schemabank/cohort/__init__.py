"""The cohort engine: many training runs over one frozen base model."""
