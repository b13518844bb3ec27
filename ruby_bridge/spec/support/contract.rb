# frozen_string_literal: true

# The fixtures that the Go tests read as well.
module Contract
  FOLDER = File.expand_path("../../../contract", __dir__)

  def contract(name) = JSON.parse(File.read(File.join(FOLDER, "#{name}.json")))
end
