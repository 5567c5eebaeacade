"""What the runs of a study say: records, means over seeds, the paper's claims."""
