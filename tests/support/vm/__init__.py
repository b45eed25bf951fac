"""Another kernel under qemu: the back-end tests and the benchmark run inside, results come out."""
