"""What answers are measured by, in evaluations and while a model trains: functions of samples, by name."""
