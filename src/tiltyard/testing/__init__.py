"""What tests and benchmarks share, also those of a project that uses Tiltyard: small real things, fakes, contract suites."""
