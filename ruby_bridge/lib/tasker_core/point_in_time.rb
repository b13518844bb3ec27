# frozen_string_literal: true

module TaskerCore
  # What an app gives for a time: Time, DateTime, ActiveSupport's, or a Date, which means the
  # midnight at which it begins in the app's zone (Time.zone), or the machine's where the app
  # has none.
  module PointInTime
    module_function

    # @param value [Time, Date, #to_time]
    # @return [Time]
    def of(value)
      return value.to_time unless defined?(Date) && value.instance_of?(Date)

      zone = Time.zone if Time.respond_to?(:zone)
      zone ? zone.local(value.year, value.month, value.day).to_time : Time.new(value.year, value.month, value.day)
    end
  end
end
