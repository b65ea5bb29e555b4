"""What is done with a model beside training: counting, timing, surveys, exports, the demo."""
