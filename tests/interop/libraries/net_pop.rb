# Ruby's net/pop: list, fetch everything, delete message 1.
require "net/pop"

security, port, ca, user, password, folder = ARGV
pop = Net::POP3.new("localhost", port.to_i)
pop.enable_ssl(OpenSSL::SSL::VERIFY_PEER, ca) if security == "tls"
pop.start(user, password) do
  pop.mails.each do |mail|
    puts "#{mail.number} #{mail.length}"
    File.binwrite("#{folder}/#{mail.number}", mail.pop)
  end
  pop.mails.first.delete
end
