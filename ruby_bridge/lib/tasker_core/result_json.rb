# frozen_string_literal: true

require "json"

module TaskerCore
  # The JSON text of a step's results.
  module ResultJson
    # Of the JSON text. What is larger belongs into a store, and its key into
    # the results.
    LIMIT_BYTES = 4 << 20

    module_function

    # @param results [Object]
    # @return [String]
    # @raise [ResultNotSerializableError, ResultTooLargeError] naming the place, such as $.items[3].price
    def dump(results)
      tree = JsonTree.build(results)
      json = generate(tree)
      return json if json.bytesize <= LIMIT_BYTES

      raise ResultTooLargeError, "the result has #{json.bytesize} bytes of JSON, #{LIMIT_BYTES} are allowed; most of it is in " \
                                 "#{JsonTree.path(bulk(tree))}: store the data elsewhere and return a reference"
    rescue JsonTree::Refused => e
      raise ResultNotSerializableError, "the result is not JSON: #{e.message}"
    end

    def generate(tree) = JSON.generate(tree, max_nesting: 0)

    # The path to the smallest value that still is more than half the limit.
    def bulk(tree)
      members = case tree
                when Hash then tree
                when Array then tree.each_with_index.to_h { |member, index| [index, member] }
                else {}
                end
      key, member = members.find { |_, candidate| generate(candidate).bytesize > LIMIT_BYTES / 2 }
      key ? [key, *bulk(member)] : []
    end
  end
end
