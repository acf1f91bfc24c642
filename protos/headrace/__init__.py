"""The wire contract of Headrace (`headrace.v1`) and the small client that speaks it (`headrace.client`)."""
