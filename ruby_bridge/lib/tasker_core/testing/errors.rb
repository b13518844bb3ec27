# frozen_string_literal: true

module TaskerCore
  module Testing
    # What a test gives can't be used. The message names the place.
    class InputError < Error; end

    # A template can't be read. The message begins with file:line:column.
    class TemplateError < Error; end

    # A step runs in a Go worker, and the test says nothing in its place.
    class StubMissingError < Error; end

    # A System does not come to rest, or its worker doesn't run. The message has the reasons.
    class SystemError < Error; end
  end
end
