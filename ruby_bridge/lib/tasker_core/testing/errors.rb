# frozen_string_literal: true

module TaskerCore
  module Testing
    # What a test gives can't be used. The message names the place.
    class InputError < Error; end

    # A template can't be read. The message begins with file:line:column.
    class TemplateError < Error; end

    # A step runs in a Go worker, and the test says nothing in its place.
    class StubMissingError < Error; end
  end
end
