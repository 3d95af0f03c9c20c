"""Teacher and student: loaded, their labels reconciled with the data's, the student made afresh for every run."""
