"""What a training may make small beside what labels and teacher say: one term a file; `table` lists them."""
