# frozen_string_literal: true

# After `bundle install`, Bundler chooses the gems. Without it (a machine with
# the distribution's packages alone) Ruby takes what is installed.
gemfile = File.expand_path("../Gemfile", __dir__)
if File.exist?("#{gemfile}.lock")
  ENV["BUNDLE_GEMFILE"] ||= gemfile
  require "bundler/setup"
else
  $LOAD_PATH.unshift(File.expand_path("../../../ruby_bridge/lib", __dir__))
end
